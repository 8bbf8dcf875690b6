"""Converts other color spaces to sRGB, by ICC profile, LAB or PNG's gamma. No torch.

Uses the defaults of Pillow's ImageCms: littleCMS, perceptual intent, its built-in sRGB profile.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from models.samples import Say

LONGEST_PROFILE = 4 * 2**20

_GREY_MODES = ("1", "L", "LA", "La")
# Image mode before the conversion -> the name of its color space in an ICC profile.
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_NO_CHANGE = 1  # a profile that changes no color by more levels than this is taken for sRGB
_STEPS = 9  # per channel, in the colors that test what a profile changes
_USUAL_GAMMA, _NEARLY_USUAL = 1 / 2.2, 0.025
_GAMMAS = (0.1, 10.0)
_HDR = {16, 18}  # PQ and HLG (ITU-T H.273, table 3)
_LINEAR = 8
_WIDE_PRIMARIES = {9, 11, 12}  # BT.2020, DCI-P3 and Display P3 (table 2)


@dataclass(frozen=True, slots=True)
class ToSrgb:
    """A conversion to RGB for an image without transparency in ``mode``."""

    mode: str
    apply: Callable[[Image.Image], Image.Image]


def to_srgb(image: Image.Image, say: Say) -> ToSrgb | None:
    """Choose the conversion of an image's colors to sRGB; None if they need none. A profile that cannot be
    used is ignored, and ``say`` is called with a warning."""
    if image.mode == "LAB":
        return ToSrgb("LAB", _from_lab)
    mode = "CMYK" if image.mode == "CMYK" else "L" if _is_grey(image) else "RGB"
    profile = image.info.get("icc_profile")
    if profile:
        return _by_profile(profile, mode, say)
    if numbers := image.info.get("nclx_profile"):
        warn_of_unconverted_colours(numbers["color_primaries"], numbers["transfer_characteristics"], say)
    if "srgb" not in image.info and isinstance(gamma := image.info.get("gamma"), float):
        return _by_gamma(gamma, mode)
    return None


def warn_of_unconverted_colours(primaries: int, transfer: int, say: Say) -> None:
    """Warn if an image specifies its color space by code points (ITU-T H.273) instead of a profile, as HEIF,
    AVIF and PNG can, and is HDR, linear or wide-gamut. Such images are not converted."""
    if transfer in _HDR:
        say("the image is HDR and has no color profile: it is read as sRGB, so its brightness may be wrong")
    elif transfer == _LINEAR:
        say("the image has linear samples and no color profile: it is read as sRGB, so it is too dark")
    elif primaries in _WIDE_PRIMARIES:
        say(
            "the image has a wider gamut than sRGB and no color profile: it is read as sRGB, so its colors "
            "are paler"
        )


def _is_grey(image: Image.Image) -> bool:
    return image.mode in _GREY_MODES or image.mode.startswith("I") or image.mode == "F"


def _by_profile(profile: bytes, mode: str, say: Say) -> ToSrgb | None:
    if len(profile) > LONGEST_PROFILE:
        say(
            f"the image's color profile has {len(profile)} bytes, more than {LONGEST_PROFILE}, and was "
            "ignored: the colors are not converted"
        )
        return None
    try:
        convert = _transform(profile, mode)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        reason = str(error) if isinstance(error, _AnotherSpace) else "is broken"
        say(f"the image's color profile {reason}, and was ignored: the colors are not converted")
        return None
    return None if convert is None else ToSrgb(mode, convert)


class _AnotherSpace(ValueError):
    """The profile is for a different color space than that of the image."""


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """The conversion by a profile; None if it changes nothing. Raises _AnotherSpace and ImageCms's errors."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    if space != _SPACES[mode]:
        raise _AnotherSpace(f"is for {space}, not for {_SPACES[mode]}")
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "RGB":
        colours = _colours()
        changed = np.asarray(transform.apply(colours)).astype(int) - np.asarray(colours)
        if np.abs(changed).max() <= _NO_CHANGE:
            return None
    return transform.apply


@lru_cache(maxsize=1)
def _colours() -> Image.Image:
    """A grid of colors that covers RGB."""
    steps = np.linspace(0, 255, _STEPS).astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1)
    return Image.fromarray(cube.reshape(_STEPS**2, _STEPS, 3))


def _from_lab(image: Image.Image) -> Image.Image:
    return _lab_transform().apply(image)


@lru_cache(maxsize=1)
def _lab_transform() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
    )


def _by_gamma(gamma: float, mode: str) -> ToSrgb | None:
    """Convert by PNG's gAMA: a sample is the light intensity to the power of ``gamma``. Values near the usual
    1 / 2.2 are taken for sRGB."""
    if abs(gamma - _USUAL_GAMMA) <= _NEARLY_USUAL or not _GAMMAS[0] <= gamma <= _GAMMAS[1] or mode == "CMYK":
        return None
    light = (np.arange(256) / 255) ** (1 / gamma)
    shown = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    table = [round(255 * value) for value in shown.tolist()]
    return ToSrgb("RGB", lambda image: image.point(table * 3))
