"""Three classes of tiny pictures, and what breaks a picture."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.models.training.coloured import COLOURS, save_pictures

Break = Callable[[Path], None]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five pictures in each of three class folders."""
    return save_pictures(tmp_path / "pictures", dict.fromkeys(COLOURS, 5), lambda _: (37, 43))


def _truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _junk(path: Path) -> None:
    path.write_bytes(b"<html>404 Not Found</html>")


def _other_format(path: Path) -> None:
    Image.new("RGB", (20, 20)).save(path, "JPEG2000")


def _broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


@pytest.fixture(
    params=[_truncate, _empty, _junk, _other_format, _broken_link], ids=lambda each: each.__name__
)
def break_it(request: pytest.FixtureRequest) -> Break:
    """A way in which a picture can be broken."""
    breaks: Break = request.param
    return breaks
