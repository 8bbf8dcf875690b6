"""Files that are there whole or not at all."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models.files import write_whole


@pytest.fixture
def room_for_a_megabyte() -> Iterator[None]:
    """The system refuses to write more into a file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_written_takes_the_place_in_one_step(tmp_path: Path) -> None:
    """Even under the longest name that there is, and nothing else is left."""
    path = tmp_path / ("x" * 251 + ".txt")
    path.write_text("before")
    write_whole(path, lambda file: file.write(b"after"))
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("room_for_a_megabyte")
def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """torch's own error becomes the system's, which names the file; half a file is not left."""
    path = tmp_path / "state.pt"
    path.write_text("before")
    with pytest.raises(OSError, match="File too large") as caught:
        write_whole(path, lambda file: torch.save(torch.zeros(1_000_000), file))
    assert caught.value.filename == str(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_what_was_there(tmp_path: Path) -> None:
    """Ctrl-C while a state is written loses nothing."""

    def interrupted(file: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "state.pt"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, interrupted)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
