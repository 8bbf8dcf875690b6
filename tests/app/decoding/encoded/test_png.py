"""PNGs with more in them than a picture."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.decoding.encoded.png import MOST_CHUNKS, without_extras
from app.errors import UndecodableImage
from models.colour import LONGEST_PROFILE
from tests.app.decoding.encoded.files import encoded, noisy, png_chunk, seen
from tests.models.profiles import DISPLAY_P3_PROFILE

PLAIN = encoded(noisy(), "PNG")
PIXELS = seen(PLAIN).pixels
HEAD = 33  # signature and IHDR
BOMB = zlib.compress(bytes(50_000_000))


def with_chunks(*chunks: tuple[bytes, bytes], plain: bytes = PLAIN) -> bytes:
    return plain[:HEAD] + b"".join(png_chunk(*chunk) for chunk in chunks) + plain[HEAD:]


def unheard(_: str) -> None:
    raise AssertionError("nothing was to be said")


TEXTS = {
    "XMP of 2 MB": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<x>" * 700_000),
    "text of 2 MB": (b"tEXt", b"Comment\0" + b"x" * 2_000_000),
    "compressed text of 50 MB": (b"zTXt", b"a\0\0" + BOMB),
    "compressed international text of 50 MB": (b"iTXt", b"a\0\1\0\0\0" + BOMB),
    "broken text": (b"zTXt", b"a\0\0no zlib"),
    "a chunk that nobody knows": (b"prVt", bytes(1000)),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_left_out_and_the_picture_answered(name: str) -> None:
    """However long, compressed or broken it is, before and behind the pixels."""
    before = with_chunks(TEXTS[name])
    behind = PLAIN[:-12] + png_chunk(*TEXTS[name]) + PLAIN[-12:]
    for data in (before, behind):
        assert without_extras(data, unheard) == PLAIN
        answer = seen(data)
        assert np.array_equal(answer.pixels, PIXELS)
        assert answer.warnings == ()


@pytest.mark.parametrize(
    "profile",
    [b"a\0\0" + BOMB, b"a\0\0no zlib", b"a\0\0" + zlib.compress(DISPLAY_P3_PROFILE)[:-30], b"", b"\0\0"],
    ids=["bomb", "no zlib", "cut", "empty", "no name"],
)
def test_a_profile_that_cannot_be_read_does_not_cost_the_picture(profile: bytes) -> None:
    """It is passed over, and the answer says so."""
    answer = seen(with_chunks((b"iCCP", profile)))
    assert np.array_equal(answer.pixels, PIXELS)
    assert answer.warnings == ("the image's color profile is corrupt or too large, and was ignored",)


def test_a_long_profile_is_read() -> None:
    """Scanners write profiles of megabytes, with tables that nobody needs."""
    profile = DISPLAY_P3_PROFILE + np.random.default_rng(1).bytes(LONGEST_PROFILE - len(DISPLAY_P3_PROFILE))
    profile = struct.pack(">I", len(profile)) + profile[4:]
    answer = seen(with_chunks((b"iCCP", b"a\0\0" + zlib.compress(profile))))
    assert answer.warnings == ()
    assert not np.array_equal(answer.pixels, PIXELS)


def test_what_decides_the_look_stays() -> None:
    """Palette, transparency, gamma, profile and orientation are the same without the text."""
    image = noisy().quantize(20)
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(image, "PNG", transparency=3, exif=exif, icc_profile=DISPLAY_P3_PROFILE)
    texts = with_chunks((b"gAMA", struct.pack(">I", 45455)), (b"tEXt", b"a\0b"), plain=plain)
    assert without_extras(texts, unheard) == with_chunks((b"gAMA", struct.pack(">I", 45455)), plain=plain)
    assert np.array_equal(seen(texts).pixels, seen(plain).pixels)


def test_later_frames_are_left_out() -> None:
    """Of an animated PNG, the picture that every decoder shows."""
    frames = [noisy(), noisy().rotate(180), Image.new("RGB", (320, 240))]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert b"fdAT" in data
    assert b"fdAT" not in without_extras(data, unheard)
    assert np.array_equal(seen(data).pixels, PIXELS)


def test_two_million_chunks_are_refused_unread() -> None:
    """30 MB of text chunks of a letter; as many empty ones of pixels."""
    for kind, content in ((b"tEXt", b"a\0b"), (b"IDAT", b"")):
        data = PLAIN[:HEAD] + png_chunk(kind, content) * 2_000_000 + PLAIN[HEAD:]
        with pytest.raises(UndecodableImage, match=f"more than {MOST_CHUNKS} chunks"):
            seen(data)


@given(st.integers(0, len(PLAIN)), st.binary(max_size=20))
def test_what_is_cut_or_broken_stays_for_the_decoder(place: int, garbage: bytes) -> None:
    """Nothing but known chunks goes: a cut file stays as it is, as does what follows no frame of chunks."""
    assert without_extras(PLAIN[:place], unheard) == PLAIN[:place]
    assert without_extras(PLAIN + garbage, unheard) == PLAIN + garbage


SRGB_PRIMARIES = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
P3_PRIMARIES = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


def primaries(values: tuple[int, ...]) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *values)


NAMED_COLOURS = {
    "PQ": ([(b"cICP", bytes([9, 16, 0, 1]))], "HDR"),
    "HLG": ([(b"cICP", bytes([9, 18, 0, 1]))], "HDR"),
    "Display P3": ([(b"cICP", bytes([12, 13, 0, 1]))], "wider gamut than sRGB"),
    "sRGB": ([(b"cICP", bytes([1, 13, 0, 1]))], None),
    "other primaries": ([primaries(P3_PRIMARIES)], "other primaries than sRGB"),
    "the primaries of sRGB": ([primaries(SRGB_PRIMARIES)], None),
    "other primaries, and sRGB": ([primaries(P3_PRIMARIES), (b"sRGB", b"\0")], None),
    "sRGB by number, whatever the primaries are": (
        [(b"cICP", bytes([1, 13, 0, 1])), primaries(P3_PRIMARIES)],
        None,
    ),
    "Display P3 beside its profile": (
        [(b"cICP", bytes([12, 13, 0, 1])), (b"iCCP", b"P3\0\0" + zlib.compress(DISPLAY_P3_PROFILE))],
        None,
    ),
    "Display P3, linear": ([(b"cICP", bytes([12, 8, 0, 1]))], "wider gamut than sRGB"),
    "cut": ([(b"cICP", b"\x09")], None),
}


@pytest.mark.parametrize("name", NAMED_COLOURS)
def test_colours_that_are_not_converted_are_said(name: str) -> None:
    """A PNG may name its colours by numbers (cICP) or by their primaries (cHRM); only a profile is
    converted."""
    chunks, warning = NAMED_COLOURS[name]
    said = seen(with_chunks(*chunks)).warnings
    assert [warning in one for one in said] == [True] if warning else not said


COLOUR = tuple(int(value) for value in np.asarray(noisy())[0, 0])
TRANSPARENT = (b"tRNS", struct.pack(">3H", *COLOUR))
LINEAR, USUAL = (b"gAMA", struct.pack(">I", 100_000)), (b"gAMA", struct.pack(">I", 45_455))


def behind(*chunks: tuple[bytes, bytes]) -> bytes:
    return PLAIN[:-12] + b"".join(png_chunk(*chunk) for chunk in chunks) + PLAIN[-12:]


@pytest.mark.parametrize(
    ("data", "same"),
    [
        (behind(TRANSPARENT), PLAIN),
        (behind(LINEAR), PLAIN),
        (with_chunks(USUAL, LINEAR), PLAIN),
        (with_chunks((b"gAMA", b"\0\0")), PLAIN),
        (with_chunks((b"tRNS", b"\0\1")), PLAIN),
        (with_chunks(LINEAR, (b"cICP", bytes([1, 13, 0, 1]))), PLAIN),
        (with_chunks((b"cICP", bytes([1, 8, 0, 1]))), with_chunks(LINEAR)),
        (with_chunks((b"sRGB", b"\0"), (b"cICP", bytes([1, 8, 0, 1]))), with_chunks(LINEAR)),
    ],
    ids=[
        "tRNS behind the pixels",
        "gAMA behind the pixels",
        "a second gAMA",
        "a short gAMA",
        "a short tRNS",
        "cICP before gAMA",
        "linear by cICP",
        "linear by cICP and not sRGB",
    ],
)
def test_chunks_are_heeded_as_in_browsers(data: bytes, same: bytes) -> None:
    """At their place, once, in their length, and cICP before gAMA and sRGB (PNG, 4.3 and 5.6)."""
    answer, wanted = seen(data), seen(same)
    assert np.array_equal(answer.pixels, wanted.pixels)
    assert answer.warnings == wanted.warnings == ()


def test_a_palette_is_needed_before_the_pixels_and_before_its_transparency() -> None:
    """Without one, Pillow shows black; browsers pass over a tRNS that comes before it."""
    plain = encoded(noisy().quantize(20), "PNG", optimize=False)
    begin = plain.index(b"PLTE") - 4
    end = begin + 12 + struct.unpack(">I", plain[begin : begin + 4])[0]
    palette, transparent = plain[begin:end], png_chunk(b"tRNS", bytes(20))
    early = plain[:begin] + transparent + plain[begin:]
    assert np.array_equal(seen(early).pixels, seen(plain).pixels)
    for without in (plain[:begin] + plain[end:], plain[:begin] + plain[end:-12] + palette + plain[-12:]):
        with pytest.raises(UndecodableImage, match="no palette before its pixels"):
            seen(without)
