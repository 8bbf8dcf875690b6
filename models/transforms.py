"""A decoded or decodable photograph -> the uint8 pixels a model sees. No torch: front ends use it too.

This is the one preprocessing of serving, evaluation and training: the same colour handling everywhere,
and one resize straight from the crop box, where timm resizes the whole image and then cuts.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

from models.colour import ToSrgb, to_srgb
from models.samples import Say, in_8_bits, is_wide, refuse_signed_bytes

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Crop = Literal["center", "squash"]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# EXIF orientation (TIFF 6.0, tag 274) -> what turns the stored pixels upright.
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
_PIXELS_AT_A_TIME = 2**22
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_TRANSPARENCY_BACKGROUND = (255, 255, 255, 255)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What a checkpoint was trained to see. ``mean`` and ``std`` are per RGB channel, of values in 0..1.

    With one of ``channels`` the image is made grey, which then is in all three channels of the pixels.

    ``crop`` is "center" (the largest box of the input's proportions, in the middle) or "squash" (the whole
    image, whatever its proportions); of either, the middle ``crop_share`` of each side is seen.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    crop: Crop = "center"
    crop_share: float = 1.0
    channels: Literal[1, 3] = 3


def crop_box(width: int, height: int, spec: InputSpec) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in the image's pixels of what the model sees of it."""
    rows, columns = spec.size
    if spec.crop == "squash":
        crop_width, crop_height = width * spec.crop_share, height * spec.crop_share
    else:
        scale = min(width / columns, height / rows) * spec.crop_share
        # In floats 224 * (29 / 224) is above 29, and Pillow refuses a box that reaches beyond the image.
        crop_width, crop_height = min(columns * scale, width), min(rows * scale, height)
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return (left, top, left + crop_width, top + crop_height)


class TooManyPixels(ValueError):
    """More would have to be decoded than is allowed."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(f"{width} x {height} pixels would have to be decoded")
        self.width, self.height = width, height


def _nothing(_: str) -> None:
    """Nobody wants to hear it."""


def to_pixels(
    image: Image.Image, spec: InputSpec, *, most_pixels: int | None = None, say: Say = _nothing
) -> UInt8[np.ndarray, "height width 3"]:
    """Crop, resize and turn upright; any colour mode. Decodes lazily opened JPEGs at a reduced scale.

    ``say`` hears what is uncertain about the colours. Raises what Pillow raises for data it cannot decode
    (OSError, SyntaxError, ValueError), UnclearPixels, and TooManyPixels where more than ``most_pixels`` would
    be decoded.
    """
    rows, columns = spec.size
    upright = _what_turns_upright(image)
    if upright in _SWAP_SIDES:
        rows, columns = columns, rows
    spec = replace(spec, size=(rows, columns))
    # A JPEG scaled down in its own transform costs a fraction of a full decode; at twice the size that the
    # resize then needs, the pixels come out the same.
    width, height = image.size
    box = crop_box(width, height, spec)
    reduction = min((box[2] - box[0]) / (2 * columns), (box[3] - box[1]) / (2 * rows))
    if reduction > 1:
        drafted = image.draft(None, (int(width / reduction), int(height / reduction)))
        if drafted is not None:
            # The decoded size is rounded up; this is what the whole image exactly comes to.
            scale = drafted[1][2] / width
            box = (box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale)
    if most_pixels is not None and image.width * image.height > most_pixels:
        raise TooManyPixels(*image.size)
    seen = as_rgb(image, say)
    if spec.channels == 1:
        seen = seen.convert("L").convert("RGB")
    small = seen.resize((columns, rows), _RESAMPLING[spec.interpolation], box=box)
    return np.asarray(small if upright is None else small.transpose(upright))


def photograph(image: Image.Image) -> Image.Image:
    """The whole image as a person sees it: upright RGB. Raises as `to_pixels` does."""
    upright = _what_turns_upright(image)
    image = as_rgb(image)
    return image if upright is None else image.transpose(upright)


def as_rgb(image: Image.Image, say: Say = _nothing) -> Image.Image:
    """The image in sRGB, transparency on white, 16 bits scaled to 8; as it lies, not turned upright.

    Raises as `to_pixels` does.
    """
    refuse_signed_bytes(image)
    colours = to_srgb(image, say)
    if image.mode == "RGB" and "transparency" not in image.info and colours is None:
        return image
    if is_wide(image):
        image = in_8_bits(image, say)
    elif image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    image.load()
    # A part at a time: what lies between would take many times the memory of the image.
    rgb = Image.new("RGB", image.size)
    rows = max(1, _PIXELS_AT_A_TIME // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(_part_as_rgb(part, colours), (0, top))
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
    """What the EXIF orientation asks for. Loads all but JPEGs, whose decoding can still be made cheaper."""
    if image.format not in ("JPEG", "MPO"):
        # Pillow itself turns a TIFF upright while it loads, and a PNG's EXIF may stand behind its pixels.
        image.load()
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        # Anyone may have written the EXIF, and Pillow fails on it in many ways; the pixels are still good.
        return None
