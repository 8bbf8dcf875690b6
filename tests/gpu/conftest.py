"""Tests that need a GPU. They import pytest, torch and timm, and nothing else that is not ours."""

import pytest
import torch

import benchmarks  # noqa: F401 (stands in for jaxtyping where that is not installed)
from tests.models.conftest import make_pixels, make_vit  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a GPU they skip."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))
