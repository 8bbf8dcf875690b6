"""Files that change."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from app.security.file_version import version_of


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("one")
    os.utime(other, (1, 1))
    other.replace(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text("two"),
        lambda path: path.write_text("longer"),
        replaced,
        lambda path: path.chmod(0o600),
        lambda path: path.unlink(),
    ],
    ids=["content", "length", "another file of that time and length", "mode", "gone"],
)
def test_every_change_is_seen(tmp_path: Path, change: Callable[[Path], object]) -> None:
    """Also of the mode: a file that could not be read may be readable now."""
    path = tmp_path / "file"
    path.write_text("one")
    os.utime(path, (1, 1))
    path.chmod(0o644)
    before = version_of(path)
    assert version_of(path) == before
    change(path)
    assert version_of(path) != before
