"""A client's shared memory."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.http.regions.table import Regions

Make = Callable[..., str]


@pytest.fixture
def make_memory() -> Iterator[Make]:
    """Shared memory with these bytes under a name of its own: its key."""
    made: list[Path] = []

    def make(content: bytes) -> str:
        name = f"trimvit-test-{os.getpid()}-{uuid.uuid4().hex}"
        path = Path("/dev/shm", name)
        path.write_bytes(content)
        made.append(path)
        return f"/{name}"

    yield make
    for path in made:
        path.unlink(missing_ok=True)


@pytest.fixture
def regions(tmp_path: Path) -> Regions:
    return Regions(tmp_path / "regions", most_bytes=100_000, most_regions=3)
