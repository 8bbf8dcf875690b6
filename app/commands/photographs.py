"""What was typed as PHOTO -> the photographs it means."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from app.images import FORMATS

STANDARD_INPUT = "-"


def endings() -> tuple[str, ...]:
    """Of the files in a folder that are taken for images, in order: those of the formats that are decoded."""
    Image.init()
    return tuple(sorted(end for end, kind in Image.registered_extensions().items() if kind in FORMATS))


@dataclass(frozen=True, slots=True)
class Photograph:
    """An encoded image that has not been read yet. ``path`` is None for standard input; ``within`` is the
    part of the path that was not typed: in a folder, the way from it."""

    path: Path | None
    within: Path

    def __str__(self) -> str:
        return STANDARD_INPUT if self.path is None else str(self.path)

    def read(self) -> bytes:
        """Raises OSError."""
        return sys.stdin.buffer.read() if self.path is None else self.path.read_bytes()


def find(operands: Sequence[str]) -> list[Photograph]:
    """The files that were named, and those in folders by their path. What is no file will fail when it is
    read. Raises FileNotFoundError for a folder without images."""
    found: list[Photograph] = []
    for operand in operands:
        path = Path(operand)
        if operand == STANDARD_INPUT:
            found.append(Photograph(None, Path("standard-input")))
        elif path.is_dir():
            found += in_folder(path)
        else:
            found.append(Photograph(path, Path(path.name)))
    return found


def in_folder(folder: Path) -> list[Photograph]:
    """The images of a folder and its sub-folders. Raises FileNotFoundError where there is none."""
    known = endings()
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
    if not paths:
        raise FileNotFoundError(f"there are no images in {folder} (looked for {', '.join(known)})")
    return [Photograph(path, path.relative_to(folder)) for path in paths]
