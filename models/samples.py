"""Samples of more than 8 bits -> 8 bits. No torch."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

Say = Callable[[str], None]

# TIFF 6.0: BitsPerSample, PhotometricInterpretation, SampleFormat.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2
_ROWS_AT_A_TIME = 64

# Floats have no range of their own: what the largest of them is taken to be a part of. A little more than the
# range itself, as a sharpened image overshoots.
_FLOAT_RANGES = ((2.0, 1.0), (512.0, 255.0), (131_072.0, 65_535.0))
_UNDERSHOOT = 0.05


class UnclearPixels(ValueError):
    """The brightness of the samples is not defined."""


def is_wide(image: Image.Image) -> bool:
    """Whether the image has samples of more than 8 bits, which Pillow does not scale: its modes I and F."""
    return image.mode.startswith("I") or image.mode == "F"


def refuse_signed_bytes(image: Image.Image) -> None:
    """Raises UnclearPixels for a TIFF of signed 8-bit samples, which Pillow reads as unsigned ones."""
    if _SIGNED in _tag(image, _SAMPLE_FORMAT) and not is_wide(image):
        raise UnclearPixels("the TIFF has signed 8-bit samples; save it with unsigned ones, from 0 to 255")


def in_8_bits(image: Image.Image, say: Say) -> Image.Image:
    """An image of wide samples as mode L, or LA if one of its values is transparent.

    16-bit samples are a share of 65,535, those of a 12-bit TIFF of 4,095. 32-bit integers and floats are
    scaled by their range: to 1 (floats), to 255, to 65,535, or the integers' own. ``say`` hears what is
    uncertain. Raises UnclearPixels for what fits none of these.
    """
    values = _unsigned(image)
    top = _top(image, values, say)
    inverted = _WHITE_IS_ZERO in _tag(image, _PHOTOMETRIC)
    grey = Image.fromarray(_scaled(values, top, inverted=inverted))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _unsigned(image: Image.Image) -> Shaped[np.ndarray, "height width"]:
    """Pillow reads unsigned 32-bit integers as signed ones."""
    values = np.asarray(image)
    if image.mode == "I" and 32 in _tag(image, _BITS) and _SIGNED not in _tag(image, _SAMPLE_FORMAT):
        return values.view(np.uint32)
    return values


def _top(image: Image.Image, values: Shaped[np.ndarray, "height width"], say: Say) -> float:
    """The value that is white."""
    if image.mode.startswith("I;16"):
        return 4095.0 if 12 in _tag(image, _BITS) else 65535.0
    low, high = _range(values)
    if image.mode == "F":
        return _top_of_floats(low, high, say)
    if low < 0:
        raise UnclearPixels(
            f"the image has signed integers, from {low:.0f} to {high:.0f}, so its black level is unknown; "
            "save it with unsigned ones"
        )
    if 16 in _tag(image, _BITS):
        return 32767.0
    top = next((top for top in (255.0, 65535.0) if high <= top), float(np.iinfo(values.dtype).max))
    if high > 65535:
        say(f"the image has 32-bit integers up to {high:.0f}; {top:.0f} was used as white")
    return top


def _top_of_floats(low: float, high: float, say: Say) -> float:
    top = next((top for most, top in _FLOAT_RANGES if high <= most), None)
    if top is None or low < -_UNDERSHOOT * top:
        raise UnclearPixels(
            f"the image has floating-point values from {low:g} to {high:g}; save it with values from 0 to 1, "
            "0 to 255 or 0 to 65535"
        )
    if top == _FLOAT_RANGES[-1][1]:
        say(f"the image has floating-point values up to {high:g}; {top:.0f} was used as white")
    return top


def _range(values: Shaped[np.ndarray, "height width"]) -> tuple[float, float]:
    """The least and the greatest finite value; 0 and 0 if there is none."""
    low, high = np.inf, -np.inf
    for part in _parts(values):
        finite = part[np.isfinite(part)] if part.dtype.kind == "f" else part
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _scaled(
    values: Shaped[np.ndarray, "height width"], top: float, *, inverted: bool
) -> UInt8[np.ndarray, "height width"]:
    """What is no number is black."""
    scaled = np.empty(values.shape, np.uint8)
    for part, out in zip(_parts(values), _parts(scaled), strict=True):
        share = np.clip(np.nan_to_num(part.astype(np.float64), nan=0.0) / top, 0, 1)
        out[...] = (1 - share if inverted else share) * 255 + 0.5
    return scaled


def _parts(values: np.ndarray) -> Iterator[np.ndarray]:
    """Some rows at a time: the floats between would take many times the memory of the image."""
    return (values[top : top + _ROWS_AT_A_TIME] for top in range(0, len(values), _ROWS_AT_A_TIME))


def _tag(image: Image.Image, number: int) -> tuple[Any, ...]:
    """A TIFF tag's values; none for other formats."""
    value = getattr(image, "tag_v2", {}).get(number, ())
    return value if isinstance(value, tuple) else (value,)
