"""HEIC as phones write it: upright, in sRGB, within the limits, and refused in words where it is broken."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.decoding.images import ImageLimits
from app.errors import Problem, TooLarge, UndecodableImage
from tests.app.decoding.encoded.files import encoded, noisy, seen
from tests.models.profiles import DISPLAY_P3, rgb_profile
from tests.support.examples import examples

pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")

LOSSY = 12  # levels
P3_PROFILE = rgb_profile(DISPLAY_P3, 2.2)
HALVES = Image.new("RGB", (64, 96), "white")
HALVES.paste("black", (0, 0, 64, 48))


def test_a_turned_photograph_is_seen_upright() -> None:
    """Once, though both HEIF and its EXIF say how it is turned."""
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels = seen(encoded(HALVES, "HEIF", exif=exif.tobytes())).pixels
    assert pixels[0].mean() > 200, "light above"
    assert pixels[-1].mean() < 50, "dark below"


def test_a_wide_gamut_is_brought_to_srgb() -> None:
    """By the profile, as with every other format."""
    flat = Image.new("RGB", (64, 64), (200, 100, 50))
    wide, plain = (
        seen(encoded(flat, "HEIF", quality=-1, chroma=444, **profile)).pixels.astype(int)
        for profile in ({"icc_profile": P3_PROFILE}, {})
    )
    wanted = seen(encoded(flat, "PNG", icc_profile=P3_PROFILE)).pixels.astype(int)
    assert np.abs(wide - wanted).max() <= 4
    assert np.abs(wide - plain).max() > 8


@pytest.mark.parametrize(
    ("numbers", "warning"),
    [
        ({"color_primaries": 9, "transfer_characteristics": 16}, "HDR"),
        ({"color_primaries": 9, "transfer_characteristics": 18}, "HDR"),
        ({"color_primaries": 12, "transfer_characteristics": 13}, "wider gamut than sRGB"),
        ({"color_primaries": 1, "transfer_characteristics": 13}, None),
    ],
    ids=["PQ", "HLG", "Display P3", "sRGB"],
)
def test_colours_that_are_not_converted_are_said(numbers: dict[str, int], warning: str | None) -> None:
    """HEIF may name its colours by numbers (ITU-T H.273) instead of a profile."""
    said = seen(encoded(noisy(), "HEIF", **numbers)).warnings
    assert [warning in one for one in said] == [True] if warning else not said


def test_ten_bits_are_eight() -> None:
    """Samples of more bits are a share of their range."""
    wide = Image.fromarray(np.full((64, 64), 32768, np.uint16))
    pixels = seen(encoded(wide, "HEIF", quality=-1)).pixels.astype(int)
    assert np.abs(pixels - 128).max() <= LOSSY


def test_what_is_clear_is_white() -> None:
    """Transparency, as with every other format."""
    pixels = seen(encoded(Image.new("RGBA", (64, 64), (0, 0, 0, 0)), "HEIF")).pixels
    assert pixels.min() >= 255 - LOSSY


def test_too_many_pixels_are_refused_by_the_header() -> None:
    """Before anything is decoded."""
    data = encoded(noisy(), "HEIF")
    place = data.index(b"ispe") + 8  # width and height, 4 bytes each
    huge = data[:place] + (30_000).to_bytes(4, "big") * 2 + data[place + 8 :]
    with pytest.raises(TooLarge, match="30000 x 30000"):
        seen(huge)


def test_a_size_that_is_not_the_headers_is_no_way_around_the_limit() -> None:
    """The picture within may be larger than its file says."""
    data = encoded(Image.new("RGB", (640, 480), "grey"), "HEIF")
    place = data.index(b"ispe") + 8
    small = data[:place] + (64).to_bytes(4, "big") * 2 + data[place + 8 :]
    with pytest.raises((TooLarge, UndecodableImage)):
        seen(small, ImageLimits(64 * 64))


@pytest.mark.parametrize(
    "brand", [b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"]
)
def test_a_broken_one_is_called_broken(brand: bytes) -> None:
    """And neither a video, nor of a format that is not taken."""
    brands = brand + bytes(4) + b"mif1heic"
    with pytest.raises(UndecodableImage, match="begin as HEIC, but are corrupt"):
        seen((len(brands) + 8).to_bytes(4, "big") + b"ftyp" + brands + bytes(200))


SOUND = encoded(noisy(), "HEIF")


@settings(max_examples=examples(30))
@given(place=st.integers(0, len(SOUND) - 1), value=st.integers(0, 255), cut=st.booleans())
def test_damage_is_seen_through_or_refused(place: int, value: int, cut: bool) -> None:
    """No other exception."""
    damaged = SOUND[:place] if cut else SOUND[:place] + bytes([value]) + SOUND[place + 1 :]
    with contextlib.suppress(Problem):
        seen(damaged)
