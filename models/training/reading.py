"""Read image files for training and evaluation, with the formats and preprocessing of serving."""

import errno
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from models.formats import FORMATS
from models.image_files import RAW_ENDINGS
from models.jpeg_end import END_MARK, lacks_the_end_mark_only
from models.names import shown
from models.transforms import InputSpec, photograph, to_pixels

# Training images come from the user, so their size is not limited here. The server has its own limit.
Image.MAX_IMAGE_PIXELS = None
_JPEG = b"\xff\xd8\xff"
_LONGEST_TEXT = 2**28  # bytes
# Errors of the machine, not of the file: no image can be read at the moment.
_OF_THE_MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@dataclass(frozen=True)
class Broken:
    """An image that cannot be read, and the reason."""

    path: Path
    why: str

    def __str__(self) -> str:
        return f"{shown(self.path)}: {self.why}"


@contextmanager
def _text_of_any_length() -> Iterator[None]:
    """Context that raises Pillow's limits for text in PNGs. Edited images may contain long notes."""
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = _LONGEST_TEXT, _LONGEST_TEXT
    try:
        yield
    finally:
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = before


Pixels = UInt8[np.ndarray, "height width 3"]


def pixels(path: Path, spec: InputSpec) -> Pixels | Broken:
    """Read an image and preprocess it for a model with this input."""
    return _read(path, lambda image: np.array(to_pixels(image, spec)))


def whole(path: Path, augment: Callable[[Image.Image], Image.Image]) -> Pixels | Broken:
    """Read the whole image, upright, and apply ``augment``."""
    return _read(path, lambda image: np.array(augment(photograph(image))))


def _read(path: Path, use: Callable[[Image.Image], Pixels]) -> Pixels | Broken:
    try:
        data = path.read_bytes()
    except OSError as error:
        if error.errno in _OF_THE_MACHINE:
            raise
        return Broken(path, error.strerror or str(error))
    if path.suffix.lower() in RAW_ENDINGS:
        return Broken(path, "it is a camera raw file; convert it to JPEG or PNG")
    if not data:
        return Broken(path, "it is empty (0 bytes)")
    read = _decoded(path, data, use)
    if isinstance(read, Broken) and data.startswith(_JPEG) and "truncated" in read.why:
        try:
            whole_but_for_its_end = lacks_the_end_mark_only(data)
        except (OSError, SyntaxError, ValueError):
            return read
        return _decoded(path, data + END_MARK, use) if whole_but_for_its_end else read
    return read


def _decoded(path: Path, data: bytes, use: Callable[[Image.Image], Pixels]) -> Pixels | Broken:
    try:
        with _text_of_any_length(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return use(image)
    except UnidentifiedImageError:
        return Broken(path, f"it is not an image in a known format ({', '.join(FORMATS)})")
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise many types on broken data (OSError, SyntaxError, struct.error, ...).
        return Broken(path, shown(str(error) or type(error).__name__))
