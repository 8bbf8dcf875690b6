"""Preprocessing: from a photograph to the uint8 pixels that a model sees. No torch: front ends use it too.

Serving, evaluation and training share it, so colors are handled in the same way everywhere. The crop box is
resized directly, whereas timm resizes the whole image and then crops.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

from models.colour import ToSrgb, to_srgb
from models.misread import is_opaque_bitmap, put_right, whiten_uncovered
from models.samples import Say, in_8_bits, is_wide, refuse_signed_bytes

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Crop = Literal["center", "squash"]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# EXIF orientation (TIFF 6.0, tag 274) -> the transpose that turns the stored pixels upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAP_SIDES = {_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)}
# The transposes that reverse the columns, or the rows, of the stored pixels.
_FROM_THE_RIGHT = {_UPRIGHT[orientation] for orientation in (2, 3, 7, 8)}
_FROM_BELOW = {_UPRIGHT[orientation] for orientation in (3, 4, 6, 7)}
_WIDEST_FILTER = 3  # pixels to either side, for Lanczos
_PIXELS_AT_A_TIME = 2**22
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_TRANSPARENCY_BACKGROUND = (255, 255, 255, 255)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The preprocessing that a checkpoint was trained with.

    ``size``: height and width in pixels. ``mean`` and ``std``: per RGB channel, for values from 0 to 1.

    ``channels``: with 1, the image is converted to grey, which is then in all three channels of the pixels.

    ``crop``: "center" (the largest centered box with the aspect ratio of the input) or "squash" (the whole
    image, whatever its aspect ratio). Of either, the middle ``crop_share`` of each side is used.

    ``resize``: the size, in whole pixels, to which the whole image is resized before the middle is cropped:
    its short side, or its height and width. This is what transformers' image processors do; ``crop`` and
    ``crop_share`` then describe about the same. None: the crop box is not rounded to whole pixels.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    crop: Crop = "center"
    crop_share: float = 1.0
    channels: Literal[1, 3] = 3
    resize: int | tuple[int, int] | None = None


Box = tuple[float, float, float, float]


def crop_box(width: int, height: int, spec: InputSpec) -> Box:
    """The box (left, top, right, bottom) of an upright image that the model sees, in pixels of the image."""
    if spec.resize is not None:
        return _box_of_whole_pixels(width, height, spec.size, spec.resize)
    rows, columns = spec.size
    if spec.crop == "squash":
        crop_width, crop_height = width * spec.crop_share, height * spec.crop_share
    else:
        scale = min(width / columns, height / rows) * spec.crop_share
        # In floating point, 224 * (29 / 224) exceeds 29, and Pillow rejects a box larger than the image.
        crop_width, crop_height = min(columns * scale, width), min(rows * scale, height)
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return (left, top, left + crop_width, top + crop_height)


def _box_of_whole_pixels(
    width: int, height: int, size: tuple[int, int], resize: int | tuple[int, int]
) -> Box:
    """The middle of the resized image, as a box in the original image."""
    rows, columns = size
    if not isinstance(resize, int):
        whole_rows, whole_columns = resize
    elif width <= height:
        whole_rows, whole_columns = int(resize * height / width), resize
    else:
        whole_rows, whole_columns = resize, int(resize * width / height)
    across, down = width / whole_columns, height / whole_rows
    left, top = (whole_columns - columns) // 2, (whole_rows - rows) // 2
    right = min((left + columns) * across, float(width))
    bottom = min((top + rows) * down, float(height))
    return (left * across, top * down, right, bottom)


class TooManyPixels(ValueError):
    """More pixels would have to be decoded than allowed."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(f"{width} x {height} pixels would have to be decoded")
        self.width, self.height = width, height


def _nothing(_: str) -> None:
    """Ignore a warning."""


def to_pixels(
    image: Image.Image, spec: InputSpec, *, most_pixels: int | None = None, say: Say = _nothing
) -> UInt8[np.ndarray, "height width 3"]:
    """Crop and resize an image of any color mode, and turn it upright.

    JPEGs that are not loaded yet are decoded at a reduced scale. ``say`` is called with warnings about the
    colors. Raises Pillow's errors for data it cannot decode (OSError, SyntaxError, ValueError),
    UnclearPixels, and TooManyPixels if more than ``most_pixels`` would be decoded.
    """
    put_right(image)
    upright = _what_turns_upright(image)
    box = _stored_box(image.size, spec, upright)
    rows, columns = reversed(spec.size) if upright in _SWAP_SIDES else spec.size
    # A JPEG that is scaled down in its DCT takes a fraction of the time of a full decode. At twice the size
    # that the resize needs, the pixels come out the same.
    width, height = image.size
    reduction = min((box[2] - box[0]) / (2 * columns), (box[3] - box[1]) / (2 * rows))
    if reduction > 1:
        drafted = image.draft(None, (int(width / reduction), int(height / reduction)))
        if drafted is not None:
            # The decoded size is rounded up; this is the exact scale.
            scale = drafted[1][2] / width
            box = (box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale)
    if most_pixels is not None and image.width * image.height > most_pixels:
        raise TooManyPixels(*image.size)
    seen = as_rgb(image, say)
    if spec.channels == 1:
        seen = seen.convert("L").convert("RGB")
    resampling = _RESAMPLING[spec.interpolation]
    if seen.size == (columns, rows) and box == (0.0, 0.0, float(columns), float(rows)):
        small = seen  # Pillow would copy it
    elif spec.resize is None:
        small = seen.resize((columns, rows), resampling, box=box)
    else:
        small = _in_two_passes(seen, (columns, rows), resampling, box, down_first=upright in _SWAP_SIDES)
    return np.asarray(small if upright is None else small.transpose(upright))


def _in_two_passes(
    image: Image.Image, size: tuple[int, int], resampling: Image.Resampling, box: Box, *, down_first: bool
) -> Image.Image:
    """Resize horizontally and then vertically, or in the other order. ``size``: columns, rows.

    Pillow chooses the order by cost, but torchvision, which transformers uses, always resizes horizontally
    first. The order matters where the first pass overshoots, because its results are clipped to 0 to 255.
    """
    for goes_down in (down_first, not down_first):
        columns, rows = size
        left, top, right, bottom = box
        if goes_down:
            first, last = _reach(left, right, columns, image.width)
            image = image.crop((first, 0, last, image.height))
            image = image.resize((last - first, rows), resampling, box=(0, top, last - first, bottom))
            box = (left - first, 0.0, right - first, float(rows))
        else:
            first, last = _reach(top, bottom, rows, image.height)
            image = image.crop((0, first, image.width, last))
            image = image.resize((columns, last - first), resampling, box=(left, 0, right, last - first))
            box = (0.0, top - first, float(columns), bottom - first)
    return image


def _reach(begin: float, end: float, size: int, length: int) -> tuple[int, int]:
    """The range of whole pixels, within 0 to ``length``, that are read to resize ``begin`` to ``end`` to
    ``size`` pixels."""
    margin = _WIDEST_FILTER * max(1.0, (end - begin) / size) + 1
    return max(0, math.floor(begin - margin)), min(length, math.ceil(end + margin))


def _stored_box(size: tuple[int, int], spec: InputSpec, upright: Image.Transpose | None) -> Box:
    """The crop box in the stored pixels, before they are turned upright. ``size``: width, height."""
    width, height = size
    if upright is None:
        return crop_box(width, height, spec)
    turned = (height, width) if upright in _SWAP_SIDES else (width, height)
    left, top, right, bottom = crop_box(*turned, spec)
    if upright in _SWAP_SIDES:
        left, top, right, bottom = top, left, bottom, right
    if upright in _FROM_THE_RIGHT:
        left, right = width - right, width - left
    if upright in _FROM_BELOW:
        top, bottom = height - bottom, height - top
    return (left, top, right, bottom)


def photograph(image: Image.Image) -> Image.Image:
    """The whole image as upright RGB. Raises like `to_pixels`."""
    put_right(image)
    upright = _what_turns_upright(image)
    image = as_rgb(image)
    return image if upright is None else image.transpose(upright)


def as_rgb(image: Image.Image, say: Say = _nothing) -> Image.Image:
    """Convert an image to sRGB, with transparency on white and 16 bits scaled to 8. It is not turned upright.

    Raises like `to_pixels`.
    """
    refuse_signed_bytes(image)
    if is_opaque_bitmap(image):
        image = image.convert("RGB")
    colours = to_srgb(image, say)
    if image.mode == "RGB" and "transparency" not in image.info and colours is None:
        return image
    if is_wide(image):
        image = in_8_bits(image, say)
    elif image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    image.load()
    # Convert in parts: the intermediate images would take many times the memory of the image.
    rgb = Image.new("RGB", image.size)
    rows = max(1, _PIXELS_AT_A_TIME // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(_part_as_rgb(part, colours), (0, top))
    whiten_uncovered(rgb, image)
    return rgb


def _part_as_rgb(part: Image.Image, colours: ToSrgb | None) -> Image.Image:
    if not part.has_transparency_data:
        return part.convert("RGB") if colours is None else colours.apply(part.convert(colours.mode))
    layer = part.convert("RGBA")
    if colours is not None:
        alpha = layer.getchannel("A")
        layer = colours.apply(layer.convert(colours.mode))
        layer.putalpha(alpha)
    background = Image.new("RGBA", part.size, _TRANSPARENCY_BACKGROUND)
    return Image.alpha_composite(background, layer).convert("RGB")


def _what_turns_upright(image: Image.Image) -> Image.Transpose | None:
    """The transpose for the EXIF orientation. Loads the image, except for JPEGs, which may still be decoded
    at a reduced scale."""
    if image.format not in ("JPEG", "MPO"):
        # Pillow turns a TIFF upright when it loads it, and a PNG's EXIF may come after its pixels.
        image.load()
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        # EXIF may be malformed, and Pillow fails on it in many ways, but the pixels are still valid.
        return None
