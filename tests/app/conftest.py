"""What the tests of `app` share."""

import pytest

from tests.app.engine.rig import address

__all__ = ["address", "anyio_backend"]


@pytest.fixture
def anyio_backend() -> str:
    """The service runs on asyncio."""
    return "asyncio"
