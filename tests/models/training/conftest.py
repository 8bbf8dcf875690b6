"""Three classes of tiny pictures, and what breaks a picture."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Break = Callable[[Path], None]

COLOURS = {"amber": (230, 170, 20), "blue": (30, 60, 220), "coral": (240, 90, 80)}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five pictures in each of three class folders."""
    folder = tmp_path / "pictures"
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(5):
            noise = np.array(colour) + generator.normal(0, 25, (37, 43, 3))
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / name / f"{index}.png")
    return folder


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
