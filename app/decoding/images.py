"""Untrusted bytes -> the input pixels of a model, within limits."""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import AvifImagePlugin, Image, ImageFile, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from app.decoding.encoded import avif, bmp, gif, jpeg, png, tiff, truncated
from app.decoding.encoded.kinds import raw_file, unidentified
from app.errors import Problem, TooLarge, UndecodableImage
from app.settings.truncated_images import TruncatedImages
from models.colour import LONGEST_PROFILE, warn_of_unconverted_colours
from models.formats import FORMATS
from models.samples import Say, UnclearPixels
from models.transforms import InputSpec, TooManyPixels, to_pixels

Data = bytes | bytearray | memoryview  # an encoded image, as received, without a copy
# Called with the preprocessed pixels. Must copy them, because they are only valid during the call.
Take = Callable[[UInt8[np.ndarray, "height width 3"]], None]

# A JPEG is decoded at a reduced scale if possible, so the number of decoded pixels is only known then. MPO is
# a JPEG with additional pictures.
_DECODED_SMALLER = ("JPEG", "MPO")

_ENDS_TOO_SOON, _DECODER_ERROR = "truncated", "decoder error"  # the words of Pillow's errors

# The maximum of JPEG. Resizing a row of millions of pixels would take gigabytes, even if there are few rows.
LONGEST_SIDE = 65_535

_PIXELS_AT_ONCE = 2**18

_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF 6.0, section 15

# Pillow's limit is disabled, because ours is checked before decoding.
Image.MAX_IMAGE_PIXELS = None
# The only compressed chunk that is left in a PNG is a color profile (app.decoding.encoded.png).
PngImagePlugin.MAX_TEXT_CHUNK = LONGEST_PROFILE
# Read files and write pixels in one piece, not in pieces of 64 KiB that must be joined.
ImageFile.MAXBLOCK = 2**20
# An image is decoded in one thread. By default, libavif uses as many threads as cores.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# Problems with an image are reported in the response. Logging them would let clients fill the log.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The limits of an image: the number of decoded ``pixels``. ``truncated``: how to handle a JPEG that ends
    too early."""

    pixels: int
    truncated: TruncatedImages = "refuse"


@dataclass(frozen=True, slots=True)
class ModelInput:
    """The input of the model for an image. ``warnings``: about how the image was read."""

    pixels: UInt8[np.ndarray, "height width 3"]
    warnings: tuple[str, ...] = ()


def decode(data: Data, spec: InputSpec, limits: ImageLimits) -> ModelInput:
    """Decode, crop and resize one encoded image. Of an animation, the first frame is used.

    Raises UnsupportedMediaType for a format that is not supported, TooLarge for too many pixels, and
    UndecodableImage for everything else that is wrong with the bytes.
    """
    if not data:
        raise UndecodableImage("the image is empty (0 bytes)")
    data = bytes(data)  # copies only if decoding does not run in a separate process
    try:
        told: list[str] = []
        if data.startswith(jpeg.SIGNATURE):
            pixels = _pixels_of_jpeg(data, spec, limits, told.append)
        else:
            pixels = _pixels(_looked_through(data, told.append), spec, limits, told.append)
        return ModelInput(pixels, tuple(dict.fromkeys(told)))
    except Problem:
        raise
    except TooManyPixels as error:
        raise TooLarge(
            f"the image would be decoded to {error.width} x {error.height} = {error.width * error.height} "
            f"pixels; at most {limits.pixels} are allowed"
        ) from error
    except UnclearPixels as error:
        raise UndecodableImage(str(error)) from error
    except UnidentifiedImageError as error:
        raise unidentified(data, ", ".join(FORMATS)) from error
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise many types on broken data (OSError, SyntaxError, struct.error, ...).
        if str(error).startswith(_DECODER_ERROR):
            what = (
                "the image is corrupt, or compressed in a way that is not supported; save it as PNG or JPEG"
            )
            raise UndecodableImage(what) from error
        raise UndecodableImage(f"the image is corrupt: {error or type(error).__name__}") from error


def _pixels_of_jpeg(
    data: bytes, spec: InputSpec, limits: ImageLimits, say: Say
) -> UInt8[np.ndarray, "height width 3"]:
    found = jpeg.read(data, limits.pixels)
    if found.lacks_profile:
        say(
            "parts of the image's color profile are missing, and it was ignored: the colors are not converted"
        )
    try:
        return _pixels(found.data, spec, limits, say)
    except OSError as error:
        if _ENDS_TOO_SOON not in str(error) or found.frame is None:
            raise
    return _pixels(truncated.completed(found, limits.truncated, say), spec, limits, say)


def _looked_through(data: bytes, say: Say) -> bytes:
    """The bytes for a decoder. Data that causes work without being part of the picture is removed or
    refused."""
    if data.startswith(png.SIGNATURE):
        return png.without_extras(data, say)
    if data.startswith(gif.SIGNATURES):
        return gif.without_extensions(data)
    if avif.is_avif(data) and (numbers := avif.colour_numbers(data)) is not None:
        warn_of_unconverted_colours(*numbers, say)
    if data.startswith(bmp.SIGNATURE):
        bmp.check_run_lengths(data)
    if data.startswith(tiff.SIGNATURES):
        if problem := raw_file(data):
            raise problem
        tiff.check_directory(data)
    return data


def _pixels(
    data: bytes, spec: InputSpec, limits: ImageLimits, say: Say
) -> UInt8[np.ndarray, "height width 3"]:
    """The decoded pixels. Also raises what Pillow raises."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.format not in _DECODED_SMALLER:
        check_size(*image.size, limits)
    check_sides(*image.size)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiles(image, limits)
    return to_pixels(image, spec, most_pixels=limits.pixels, say=say)


def resized(pixels: UInt8[np.ndarray, "rows columns 3"], spec: InputSpec, limits: ImageLimits) -> ModelInput:
    """Crop and resize an image that arrived as pixels, as `decode` does. Raises TooLarge."""
    rows, columns, _ = pixels.shape
    check_size(columns, rows, limits)
    return ModelInput(to_pixels(_laid_out(pixels), spec))


def as_it_is(
    pixels: UInt8[np.ndarray, "rows columns 3"], spec: InputSpec, limits: ImageLimits
) -> ModelInput | None:
    """Pixels that already are the input of the model, for which `resized` would return a copy. None for
    others."""
    rows, columns, _ = pixels.shape
    if (rows, columns) != spec.size or spec.crop_share != 1 or spec.channels != 3:
        return None
    check_size(columns, rows, limits)
    return ModelInput(pixels)


def _laid_out(pixels: UInt8[np.ndarray, "rows columns 3"]) -> Image.Image:
    """The pixels in Pillow's layout. Pillow holds the interpreter lock during a whole call, 0.07 s for 11
    million pixels, so it is called for a few rows at a time."""
    rows, columns, _ = pixels.shape
    at_once = max(1, _PIXELS_AT_ONCE // columns)
    if rows <= at_once:
        return Image.fromarray(pixels)
    # Not filled, because filling would touch all pixels at once.
    image = Image.new("RGB", (columns, rows), None)
    for top in range(0, rows, at_once):
        image.paste(Image.fromarray(pixels[top : top + at_once]), (0, top))
    return image


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Raises TooLarge for too many pixels, and UndecodableImage if there are none."""
    if width * height > limits.pixels:
        raise TooLarge(
            f"the image is {width} x {height} = {width * height} pixels; at most {limits.pixels} are allowed"
        )
    check_sides(width, height)


def check_sides(width: int, height: int) -> None:
    """Raises TooLarge for a side that is too long, and UndecodableImage for a side of 0."""
    if max(width, height) > LONGEST_SIDE:
        raise TooLarge(f"the image is {width} x {height} pixels; a side may have at most {LONGEST_SIDE}")
    if min(width, height) < 1:
        raise UndecodableImage(f"the image is {width} x {height} pixels")


def _check_tiles(image: TiffImagePlugin.TiffImageFile, limits: ImageLimits) -> None:
    """Limits the size of tiles: a tile is decoded as a whole, even if little of it is in the image, so 200
    bytes can ask for gigabytes."""
    tile_width, tile_height = (image.tag_v2.get(tag, 1) for tag in (_TILE_WIDTH, _TILE_LENGTH))
    if tile_width * tile_height > limits.pixels:
        raise TooLarge(
            f"the image has tiles of {tile_width} x {tile_height} pixels; at most {limits.pixels} are allowed"
        )
