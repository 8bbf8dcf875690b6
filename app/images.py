"""Untrusted bytes -> the pixels a model sees, within limits."""

import io
import re
import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import AvifImagePlugin, Image, TiffImagePlugin, UnidentifiedImageError

from app.errors import Problem, TooLarge, UndecodableImage, UnsupportedMediaType
from models.formats import FORMATS
from models.samples import UnclearPixels
from models.transforms import InputSpec, TooManyPixels, to_pixels

Data = bytes | bytearray | memoryview  # of an encoded image, as it came, without a copy

# A JPEG is decoded at the scale that is needed, so that what counts is known only then. MPO: a JPEG of several
# pictures, of which the first is read.
_DECODED_SMALLER = ("JPEG", "MPO")

# What a JPEG can have. Resizing a line of millions of pixels would cost gigabytes, however few they are.
LONGEST_SIDE = 65_535

_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF 6.0, section 15

# Our own limit holds, whatever it is, and is checked before anything is decoded.
Image.MAX_IMAGE_PIXELS = None
# One image is decoded by one thread; libavif would take as many as there are cores.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# What is wrong with an image goes into its answer; anyone could fill the log with it.
warnings.filterwarnings("ignore", module=r"PIL\.")

# How images begin that people may well send, so that they are told which format it is that is not taken.
_OTHER_SIGNATURES = [
    (name, re.compile(signature, re.DOTALL))
    for name, signature in {
        "HEIC": rb"....ftyp(heic|heix|heim|heis|hevc)",
        "AVIF": rb"....ftypavi[fs]",
        "JPEG2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
        "JPEG XL": rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a",
        "PPM": rb"P[1-7fF]\s",
        "ICO": rb"\0\0\x01\0",
        "ICNS": rb"icns",
        "DDS": rb"DDS ",
        "PSD": rb"8BPS",
        "SGI": rb"\x01\xda[\0\x01][\x01\x02]",
        "PCX": rb"\x0a[\0-\x05]\x01[\x01\x02\x04\x08]",
        "EPS": rb"%!PS|\xc5\xd0\xd3\xc6",
        "QOI": rb"qoif",
        "OpenEXR": rb"\x76\x2f\x31\x01",
    }.items()
]


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may be before it is resized."""

    pixels: int


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What a model sees of an image. ``warnings``: what its sender should know of how it was read."""

    pixels: UInt8[np.ndarray, "height width 3"]
    warnings: tuple[str, ...] = ()


def decode(data: Data, spec: InputSpec, limits: ImageLimits) -> ModelInput:
    """Decode, crop and resize one encoded image. Of an animation, the first frame.

    Raises UnsupportedMediaType for a format that is not taken, TooLarge for too many pixels, and
    UndecodableImage for everything else that is wrong with the bytes.
    """
    if not data:
        raise UndecodableImage("the image is empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.format not in _DECODED_SMALLER:
            check_size(*image.size, limits)
        check_sides(*image.size)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _check_tiles(image, limits)
        warnings_: list[str] = []
        pixels = to_pixels(image, spec, most_pixels=limits.pixels, say=warnings_.append)
        return ModelInput(pixels, tuple(warnings_))
    except Problem:
        raise
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except TooManyPixels as error:
        raise TooLarge(
            f"the image would be decoded to {error.width} x {error.height} = {error.width * error.height} "
            f"pixels; at most {limits.pixels} are allowed"
        ) from error
    except UnclearPixels as error:
        raise UndecodableImage(str(error)) from error
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise many types on broken data (OSError, SyntaxError, struct.error, ...).
        raise UndecodableImage(f"the image is broken: {error or type(error).__name__}") from error


def resized(pixels: UInt8[np.ndarray, "rows columns 3"], spec: InputSpec, limits: ImageLimits) -> ModelInput:
    """Crop and resize an image that came decoded, as `decode` does those it decodes. Raises TooLarge."""
    rows, columns, _ = pixels.shape
    check_size(columns, rows, limits)
    return ModelInput(to_pixels(Image.fromarray(pixels), spec))


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Raises TooLarge for too many pixels and UndecodableImage for none."""
    if width * height > limits.pixels:
        raise TooLarge(
            f"the image is {width} x {height} = {width * height} pixels; at most {limits.pixels} are allowed"
        )
    check_sides(width, height)


def check_sides(width: int, height: int) -> None:
    """Raises TooLarge for a side that is too long and UndecodableImage for none."""
    if max(width, height) > LONGEST_SIDE:
        raise TooLarge(f"the image is {width} x {height} pixels; a side may have at most {LONGEST_SIDE}")
    if min(width, height) < 1:
        raise UndecodableImage(f"the image is {width} x {height} pixels")


def _check_tiles(image: TiffImagePlugin.TiffImageFile, limits: ImageLimits) -> None:
    """A tile is decoded whole, however little of it lies in the image: 200 bytes can ask for gigabytes."""
    tile_width, tile_height = (image.tag_v2.get(tag, 1) for tag in (_TILE_WIDTH, _TILE_LENGTH))
    if tile_width * tile_height > limits.pixels:
        raise TooLarge(
            f"the image has tiles of {tile_width} x {tile_height} pixels; at most {limits.pixels} are allowed"
        )


def _unidentified(data: Data) -> Problem:
    """An image of a format that is not taken, as its first bytes say, or no image at all. No other decoder
    gets to see it: those off the list are off it for their bugs, too."""
    allowed = ", ".join(FORMATS)
    for name, signature in _OTHER_SIGNATURES:
        if name not in FORMATS and signature.match(data):
            return UnsupportedMediaType(f"the image is {name}; allowed are {allowed}")
    return UndecodableImage(f"the bytes are not an image in a known format ({allowed})")
