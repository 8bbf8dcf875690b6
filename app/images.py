"""Untrusted bytes -> the pixels a model sees, within limits."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError, features

from app.errors import Problem, TooLarge, UndecodableImage, UnsupportedMediaType
from models.transforms import InputSpec, to_pixels

# An allow-list: Pillow knows some forty formats, and the rest have no business in a photograph's way.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may be before it is resized."""

    pixels: int


def decode(data: bytes, spec: InputSpec, limits: ImageLimits) -> UInt8[np.ndarray, "height width 3"]:
    """Decode, crop and resize one encoded image. Of an animation, the first frame.

    Raises UnsupportedMediaType for a format that is not taken, TooLarge for too many pixels, and
    UndecodableImage for everything else that is wrong with the bytes.
    """
    if not data:
        raise UndecodableImage("the image is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            # Our own limit is checked below, before anything is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > limits.pixels:
            raise TooLarge(
                f"the image is {width} x {height} = {width * height} pixels; "
                f"at most {limits.pixels} are allowed"
            )
        if min(width, height) < 1:
            raise UndecodableImage(f"the image is {width} x {height} pixels")
        return to_pixels(image, spec)
    except Problem:
        raise
    except Image.DecompressionBombError as error:
        raise TooLarge(f"the image has too many pixels; at most {limits.pixels} are allowed") from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise many types on broken data (OSError, SyntaxError, struct.error, ...).
        raise UndecodableImage(f"the image is broken: {error or type(error).__name__}") from error


def _unidentified(data: bytes) -> Problem:
    """A sound image of a format that is not taken, or no image at all."""
    allowed = ", ".join(FORMATS)
    try:
        found = Image.open(io.BytesIO(data)).format
    except Exception:
        return UndecodableImage(f"the bytes are not an image in a known format ({allowed})")
    return UnsupportedMediaType(f"the image is {found}; allowed are {allowed}")
