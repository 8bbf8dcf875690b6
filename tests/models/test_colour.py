"""Colours of other spaces become sRGB."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from models.colour import LONGEST_PROFILE
from models.transforms import InputSpec, as_rgb, to_pixels
from tests.models.profiles import (
    ADOBE_RGB_PROFILE,
    DISPLAY_P3_PROFILE,
    PROPHOTO_PROFILE,
    SRGB,
    cmyk_profile,
    grey_profile,
    rgb_profile,
)

WIDE = {"Display P3": DISPLAY_P3_PROFILE, "Adobe RGB": ADOBE_RGB_PROFILE, "ProPhoto": PROPHOTO_PROFILE}
FILES: dict[str, dict[str, Any]] = {
    "PNG": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 95, "subsampling": 0},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}
SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def colourful() -> Image.Image:
    """Many colours, in areas large enough to survive a lossy format."""
    colours = np.random.default_rng(4).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(colours.repeat(16, axis=0).repeat(16, axis=1))


def through(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **{**FILES[kind], **options})
    return Image.open(file)


def by_imagecms(image: Image.Image, profile: bytes) -> np.ndarray:
    """What a person gets from Pillow."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None
    return np.asarray(converted).astype(int)


def apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("profile", WIDE)
@pytest.mark.parametrize("kind", FILES)
def test_wide_gamuts_are_converted_to_srgb(kind: str, profile: str) -> None:
    """In every format that has profiles, as ImageCms converts them; nothing is warned of."""
    image = through(colourful(), kind, icc_profile=WIDE[profile])
    said: list[str] = []
    seen = np.asarray(as_rgb(image, said.append))
    expected = by_imagecms(through(colourful(), kind), WIDE[profile])
    assert apart(seen, expected) <= 1
    assert apart(seen, np.asarray(colourful())) > 15, "the profile matters"
    assert said == []


@pytest.mark.parametrize("profile", [SRGB_PROFILE, rgb_profile(SRGB, 2.2)], ids=["sRGB", "nearly sRGB"])
def test_srgb_stays_as_it_is(profile: bytes) -> None:
    """To the bit, where the profile says sRGB; within what ImageCms says otherwise."""
    image = through(colourful(), "PNG", icc_profile=profile)
    seen = np.asarray(as_rgb(image))
    assert apart(seen, by_imagecms(colourful(), profile)) <= 1
    if profile == SRGB_PROFILE:
        assert apart(seen, np.asarray(colourful())) == 0


def test_a_grey_image_has_a_grey_profile() -> None:
    """Linear greys become the brighter ones of sRGB."""
    grey = colourful().convert("L")
    profile = grey_profile(1.0)
    seen = np.asarray(as_rgb(through(grey, "PNG", icc_profile=profile)))
    assert apart(seen, by_imagecms(grey, profile)) <= 1
    assert seen.mean() > np.asarray(grey).mean() + 20


def test_cmyk_is_converted_by_its_profile() -> None:
    """The profile of a CMYK image is asked, not the arithmetic of inks."""
    cmyk = colourful().convert("CMYK")
    for kind in ("TIFF", "JPEG"):
        seen = np.asarray(as_rgb(through(cmyk, kind, icc_profile=cmyk_profile())))
        decoded = through(cmyk, kind)
        assert apart(seen, by_imagecms(decoded, cmyk_profile())) <= 1, kind
        assert apart(seen, np.asarray(decoded.convert("RGB"))) > 15, kind


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA"])
def test_transparency_and_palettes_are_converted_before_they_lie_on_white(mode: str) -> None:
    """The colours of the profile are those of the image; white is sRGB's."""
    profile = grey_profile(1.0) if mode == "LA" else DISPLAY_P3_PROFILE
    colours = colourful().convert("L") if mode == "LA" else colourful()
    image = colours.quantize(40) if mode == "P" else colours.copy()
    if mode != "P":
        image.putalpha(102)
    seen = np.asarray(as_rgb(through(image, "PNG", icc_profile=profile))).astype(float)
    opaque = image.convert("RGB") if mode == "P" else colours
    expected = by_imagecms(opaque, profile).astype(float)
    if mode != "P":
        expected = 0.4 * expected + 0.6 * 255
    assert np.abs(seen - expected).max() <= 1.5


def test_sixteen_bits_have_profiles_too() -> None:
    """Greys are scaled to 8 bits, then converted."""
    wide = Image.fromarray(np.arange(0, 65536, 256, np.uint16).reshape(16, 16))
    profile = grey_profile(1.0)
    seen = np.asarray(as_rgb(through(wide, "PNG", icc_profile=profile)))
    expected = by_imagecms(Image.fromarray((np.asarray(wide) / 257 + 0.5).astype(np.uint8)), profile)
    assert apart(seen, expected) <= 1


def test_lab_is_converted() -> None:
    """L, a and b of a TIFF, as ImageCms does it."""
    lab = Image.merge(
        "LAB", (Image.new("L", (8, 8), 128), Image.new("L", (8, 8), 178), Image.new("L", (8, 8), 98))
    )
    seen = np.asarray(as_rgb(through(lab, "TIFF")))
    source = ImageCms.createProfile("LAB")
    expected = ImageCms.profileToProfile(lab, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert apart(seen, np.asarray(expected)) <= 1
    assert np.ptp(seen[0, 0]) > 50, "it is a colour"


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        (b"no profile", "is broken"),
        (DISPLAY_P3_PROFILE[:200], "is broken"),
        (DISPLAY_P3_PROFILE[:128] + bytes(300), "is broken"),
        (grey_profile(1.0), "is for GRAY, not for RGB"),
        (cmyk_profile(), "is for CMYK, not for RGB"),
        (DISPLAY_P3_PROFILE + bytes(LONGEST_PROFILE), "more than 4194304"),
    ],
    ids=["text", "cut", "zeros", "for greys", "for inks", "huge"],
)
def test_a_profile_that_cannot_be_used_is_passed_over_and_told(profile: bytes, words: str) -> None:
    """The picture is answered as if it had none."""
    said: list[str] = []
    seen = as_rgb(through(colourful(), "TIFF", icc_profile=profile), said.append)
    assert apart(np.asarray(seen), np.asarray(colourful())) == 0
    assert len(said) == 1
    assert words in said[0]


def test_a_large_jpeg_is_converted_after_its_cheap_decode() -> None:
    """Reduced in the JPEG's own transform, the colours are the same but for a level or two."""
    big = colourful().resize((1600, 1200), Image.Resampling.BICUBIC)
    spec = InputSpec((48, 64), (0.5,) * 3, (0.5,) * 3)
    image = through(big, "JPEG", icc_profile=ADOBE_RGB_PROFILE)
    seen = to_pixels(image, spec)
    assert image.size == (200, 150)
    whole = Image.fromarray(by_imagecms(through(big, "JPEG"), ADOBE_RGB_PROFILE).astype(np.uint8))
    assert np.abs(seen.astype(int) - to_pixels(whole, spec)).mean() < 1


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_gamma_of_a_png_is_honoured(mode: str) -> None:
    """Linear samples are shown as sRGB; the usual gamma changes nothing, nor does any where sRGB is named."""
    from PIL import PngImagePlugin

    def with_gamma(gamma: int, *, srgb: bool = False) -> np.ndarray:
        chunks = PngImagePlugin.PngInfo()
        chunks.add(b"gAMA", gamma.to_bytes(4, "big"))
        if srgb:
            chunks.add(b"sRGB", b"\0")
        return np.asarray(
            as_rgb(through(Image.new("RGB", (3, 2), (55,) * 3).convert(mode), "PNG", pnginfo=chunks))
        )

    assert (with_gamma(45455) == 55).all()
    assert (with_gamma(100000, srgb=True) == 55).all()
    # light 55 / 255 = 0.2157; 1.055 * 0.2157 ^ (1 / 2.4) - 0.055 = 0.5020
    assert (with_gamma(100000) == 128).all()
    assert (with_gamma(0) == 55).all()
