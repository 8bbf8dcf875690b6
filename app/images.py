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

# What a JPEG can have. Resizing a line of millions of pixels would cost gigabytes, however few they are.
LONGEST_SIDE = 65_535

# Our own limit holds, whatever it is, and is checked before anything is decoded.
Image.MAX_IMAGE_PIXELS = None
# What is wrong with an image goes into its answer; anyone could fill the log with it.
warnings.filterwarnings("ignore", module=r"PIL\.")


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
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_size(*image.size, limits)
        return to_pixels(image, spec)
    except Problem:
        raise
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise many types on broken data (OSError, SyntaxError, struct.error, ...).
        raise UndecodableImage(f"the image is broken: {error or type(error).__name__}") from error


def resized(
    pixels: UInt8[np.ndarray, "rows columns 3"], spec: InputSpec, limits: ImageLimits
) -> UInt8[np.ndarray, "height width 3"]:
    """Crop and resize an image that came decoded, as `decode` does those it decodes. Raises TooLarge."""
    rows, columns, _ = pixels.shape
    check_size(columns, rows, limits)
    return to_pixels(Image.fromarray(pixels), spec)


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Raises TooLarge for too many pixels and UndecodableImage for none."""
    if width * height > limits.pixels:
        raise TooLarge(
            f"the image is {width} x {height} = {width * height} pixels; at most {limits.pixels} are allowed"
        )
    if max(width, height) > LONGEST_SIDE:
        raise TooLarge(f"the image is {width} x {height} pixels; a side may have at most {LONGEST_SIDE}")
    if min(width, height) < 1:
        raise UndecodableImage(f"the image is {width} x {height} pixels")


def _unidentified(data: bytes) -> Problem:
    """A sound image of a format that is not taken, or no image at all."""
    allowed = ", ".join(FORMATS)
    try:
        found = Image.open(io.BytesIO(data)).format
    except Exception:
        return UndecodableImage(f"the bytes are not an image in a known format ({allowed})")
    return UnsupportedMediaType(f"the image is {found}; allowed are {allowed}")
