"""Short runs of `trimvit train`: a small network, on pictures of three colours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from models.training.config import TrainConfig
from tests.models.training.coloured import COLOURS, save_pictures

ARCHITECTURE = "test_vit"

Run = Callable[..., TrainConfig]  # (output, **changes)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 pictures of three colours."""
    folder = tmp_path_factory.mktemp("pictures") / "train"
    return save_pictures(folder, dict.fromkeys(COLOURS, 4), lambda _: (64, 64))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights to start from."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "start.pth"
    torch.save(timm.create_model(ARCHITECTURE, num_classes=3, img_size=64).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def run_with(pictures: Path, start: Path) -> Callable[..., Run]:
    """Makes what makes runs of settings of their own: in batches of 6, two steps an epoch, one epoch."""

    def with_settings(**own: Any) -> Run:
        def make(output: Path, **changes: Any) -> TrainConfig:
            settings: dict[str, Any] = {
                "data": pictures,
                "output": output,
                "architecture": ARCHITECTURE,
                "weights": start,
                "image_size": 64,
                "epochs": 1,
                "batch_size": 6,
                "learning_rate": 1e-3,
                "workers": 0,
                "device": "cpu",
                "bf16": False,
            }
            return TrainConfig(**{**settings, **own, **changes})

        return make

    return with_settings
