"""Converts images with more than 8 bits per sample to 8 bits. No torch."""

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

# Floats have no fixed range, so it is guessed from the largest value: (largest value, white). The limits are
# above white, because sharpened images overshoot.
_FLOAT_RANGES = ((2.0, 1.0), (512.0, 255.0), (131_072.0, 65_535.0))
_UNDERSHOOT = 0.05


class UnclearPixels(ValueError):
    """The brightness of the samples is not defined."""


def is_wide(image: Image.Image) -> bool:
    """Whether the image has more than 8 bits per sample, which Pillow does not scale (modes I and F)."""
    return image.mode.startswith("I") or image.mode == "F"


def refuse_signed_bytes(image: Image.Image) -> None:
    """Raise UnclearPixels for a TIFF with signed 8-bit samples, which Pillow reads as unsigned."""
    if _SIGNED in _tag(image, _SAMPLE_FORMAT) and not is_wide(image):
        raise UnclearPixels("the TIFF has signed 8-bit samples; save it with unsigned ones, from 0 to 255")


def in_8_bits(image: Image.Image, say: Say) -> Image.Image:
    """Convert an image for which `is_wide` is true to mode L, or to LA if it has a transparent value.

    White is 65,535 for 16-bit samples and 4,095 for 12-bit TIFFs. For 32-bit integers and floats, it is
    guessed from their values: 1 (floats only), 255, 65,535, or the largest integer. ``say`` is called with a
    warning if white is uncertain. Raises UnclearPixels for values that fit none of these.
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
    """The samples, with unsigned 32-bit integers that Pillow reads as signed corrected."""
    values = np.asarray(image)
    if image.mode == "I" and 32 in _tag(image, _BITS) and _SIGNED not in _tag(image, _SAMPLE_FORMAT):
        return values.view(np.uint32)
    return values


def _top(image: Image.Image, values: Shaped[np.ndarray, "height width"], say: Say) -> float:
    """The sample value of white."""
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
    """The smallest and the largest finite value; 0 and 0 if there is none."""
    low, high = np.inf, -np.inf
    for part in _parts(values):
        finite = part[np.isfinite(part)] if part.dtype.kind == "f" else part
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _scaled(
    values: Shaped[np.ndarray, "height width"], top: float, *, inverted: bool
) -> UInt8[np.ndarray, "height width"]:
    """Scale values to 8 bits. NaN becomes 0 before an inversion."""
    scaled = np.empty(values.shape, np.uint8)
    for part, out in zip(_parts(values), _parts(scaled), strict=True):
        share = np.clip(np.nan_to_num(part.astype(np.float64), nan=0.0) / top, 0, 1)
        out[...] = (1 - share if inverted else share) * 255 + 0.5
    return scaled


def _parts(values: np.ndarray) -> Iterator[np.ndarray]:
    """Iterate over blocks of rows: float64 for the whole image would take many times its memory."""
    return (values[top : top + _ROWS_AT_A_TIME] for top in range(0, len(values), _ROWS_AT_A_TIME))


def _tag(image: Image.Image, number: int) -> tuple[Any, ...]:
    """The values of a TIFF tag; empty for other formats."""
    value = getattr(image, "tag_v2", {}).get(number, ())
    return value if isinstance(value, tuple) else (value,)
