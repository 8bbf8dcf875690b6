"""What the tests of `app` share."""

import pytest

from tests.app.dispatch.rig import house

__all__ = ["anyio_backend", "house"]


@pytest.fixture
def anyio_backend() -> str:
    """The service runs on asyncio."""
    return "asyncio"
