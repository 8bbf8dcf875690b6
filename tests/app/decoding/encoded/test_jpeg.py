"""JPEGs with more in them than a picture, or of another kind."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.decoding.encoded.jpeg import MOST_SEGMENTS, read
from app.decoding.images import ImageLimits, decode
from app.errors import TooLarge, UndecodableImage
from tests.app.decoding.encoded.files import LIMITS, SPEC, encoded, jpeg_segment, noisy, seen
from tests.models.profiles import DISPLAY_P3_PROFILE

PLAIN = encoded(noisy(), "JPEG")
PROGRESSIVE = encoded(noisy(), "JPEG", progressive=True)
MOST = LIMITS.pixels


def with_segments(*segments: bytes, plain: bytes = PLAIN) -> bytes:
    return plain[:2] + b"".join(segments) + plain[2:]


EXTRAS = {
    "comments": jpeg_segment(0xFE, bytes(60_000)) * 300,
    "an editor's notes": jpeg_segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\0" * 4000) * 100,
    "extended XMP": jpeg_segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(60_000)) * 300,
    "a thumbnail in JFXX": jpeg_segment(0xE0, b"JFXX\0\x10" + bytes(5000)),
    "an index of more pictures": jpeg_segment(0xE2, b"MPF\0" + bytes(50)),
    "fill bytes": b"\xff" * 5_000_000,
}


@pytest.mark.parametrize("name", EXTRAS)
def test_what_is_no_picture_is_left_out(name: str) -> None:
    """However long it is, the picture is answered."""
    data = with_segments(EXTRAS[name])
    assert read(data, MOST).data == PLAIN
    assert np.array_equal(seen(data).pixels, seen(PLAIN).pixels)


def test_exif_colours_and_profile_stay() -> None:
    """What decides the look is the same without the comments, of grey, RGB and CMYK."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("L", "RGB", "CMYK"):
        plain = encoded(noisy().convert(mode), "JPEG", exif=exif, icc_profile=b"x" * 100_000)
        assert read(with_segments(EXTRAS["comments"], plain=plain), MOST).data == plain


def test_a_second_xmp_is_left_out_alone() -> None:
    """What follows it is still needed."""
    xmp = jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")
    assert read(with_segments(xmp, xmp), MOST).data == with_segments(xmp)
    assert np.array_equal(seen(with_segments(xmp, xmp)).pixels, seen(PLAIN).pixels)


def test_a_profile_may_be_there_twice_and_is_missed_if_a_part_is_missing() -> None:
    """Pillow drops both without a word."""
    half = len(DISPLAY_P3_PROFILE) // 2
    one, other = (
        jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes([number, 2]) + part)
        for number, part in ((1, DISPLAY_P3_PROFILE[:half]), (2, DISPLAY_P3_PROFILE[half:]))
    )
    wanted = seen(with_segments(one, other))
    assert not np.array_equal(wanted.pixels, seen(PLAIN).pixels)
    twice = seen(with_segments(one, other, jpeg_segment(0xE2, b"ICC_PROFILE\0"), other, one))
    assert np.array_equal(twice.pixels, wanted.pixels)
    assert wanted.warnings == twice.warnings == ()
    for part in (one, other):
        answer = seen(with_segments(part, part))
        assert np.array_equal(answer.pixels, seen(PLAIN).pixels)
        assert ["are missing" in warning for warning in answer.warnings] == [True]


def test_millions_of_segments_are_refused_unread() -> None:
    """Empty comments, before the pixels or between scans."""
    empty = jpeg_segment(0xFE, b"")
    for data in (
        with_segments(empty * 2_000_000),
        PROGRESSIVE[:-2] + empty * 2_000_000 + PROGRESSIVE[-2:],
    ):
        with pytest.raises(UndecodableImage, match=f"more than {MOST_SEGMENTS} segments"):
            seen(data)


def test_scans_are_counted_to_the_end_of_the_picture() -> None:
    """Not those of a thumbnail before it, nor of pictures behind it."""
    scans = PROGRESSIVE.count(b"\xff\xda")
    assert scans > 5
    thumbnail = jpeg_segment(0xE1, b"Exif\0\0" + PROGRESSIVE[:3000])
    found = read(with_segments(thumbnail, plain=PROGRESSIVE) + PROGRESSIVE, MOST)
    assert (found.several_scans, found.scans) == (True, scans)
    assert read(PLAIN + PROGRESSIVE, MOST).scans == 1


def test_a_bomb_of_scans_is_refused_unread() -> None:
    """Each scan is a pass over the whole picture: many are allowed for few pixels, few for many."""
    last = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
    bomb = PROGRESSIVE[:-2] + last * 600 + PROGRESSIVE[-2:]
    with pytest.raises(TooLarge, match="501 scans or more; at most 260 are allowed"):
        seen(bomb)
    assert seen(PROGRESSIVE[:-2] + last * 100 + PROGRESSIVE[-2:]).pixels.any()


def of_size(data: bytes, width: int, height: int) -> bytes:
    """The same with another size in its frame header."""
    frame = next(place for place in (data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) if place > 0)
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


def test_a_progressive_picture_is_held_whole_and_has_a_limit() -> None:
    """12 bytes for each pixel allowed are enough for two of three components of two bytes."""
    progressive = encoded(noisy(), "JPEG", progressive=True, subsampling="4:4:4")
    assert read(of_size(progressive, 2000, 1000), MOST).frame is not None
    with pytest.raises(TooLarge, match="takes 12 MB to decode; at most 12 MB are allowed"):
        read(of_size(progressive, 2000, 1010), MOST)
    assert read(of_size(PLAIN, 2000, 1010), MOST).frame is not None


@pytest.mark.parametrize(
    ("marker", "bits", "words"),
    [(0xC3, 8, "is lossless"), (0xC5, 8, "is hierarchical"), (0xC1, 12, "has 12 bits per sample")],
)
def test_kinds_that_are_not_decoded_are_named(marker: int, bits: int, words: str) -> None:
    """With what to save instead."""
    frame = PLAIN.index(b"\xff\xc0")
    data = (
        PLAIN[: frame + 1]
        + bytes([marker])
        + PLAIN[frame + 2 : frame + 4]
        + bytes([bits])
        + PLAIN[frame + 5 :]
    )
    with pytest.raises(UndecodableImage, match=f"{words}, which is not supported; save it as"):
        seen(data)


def test_what_counts_is_what_is_decoded() -> None:
    """A large JPEG that is decoded at an eighth has 64 times the pixels of the limit; a PNG does not."""
    image = Image.new("RGB", (1600, 1200), (10, 200, 30))
    small = ImageLimits(200 * 150)
    assert decode(encoded(image, "JPEG"), SPEC, small).pixels.shape == (24, 32, 3)
    with pytest.raises(TooLarge, match="would be decoded to 200 x 150 = 30000 pixels; at most 29999"):
        decode(encoded(image, "JPEG"), SPEC, ImageLimits(200 * 150 - 1))
    with pytest.raises(TooLarge, match="1600 x 1200"):
        decode(encoded(image, "PNG"), SPEC, small)


def test_a_jpeg_in_rgb_is_one() -> None:
    """Without the usual conversion, as its Adobe marker says."""
    image = noisy()
    rgb = encoded(image, "JPEG", keep_rgb=True, quality=95)
    assert np.abs(seen(rgb).pixels.astype(int) - seen(encoded(image, "PNG")).pixels).mean() < 2


@given(st.integers(0, len(PLAIN)))
def test_a_cut_file_stays_for_the_decoder(length: int) -> None:
    """Nothing is left out of it, and nothing raised for it."""
    for whole in (PLAIN, PROGRESSIVE):
        assert read(whole[:length], MOST).data == whole[:length]


def test_it_says_what_the_frame_header_says() -> None:
    """Size, components and their sampling."""
    frame = read(encoded(noisy(72, 40), "JPEG", subsampling="4:2:0"), MOST).frame
    assert frame is not None
    assert (frame.width, frame.height, frame.bits, frame.sampling) == (72, 40, 8, ((2, 2), (1, 1), (1, 1)))
    assert frame.coefficients == 72 * 40 * 3 // 2
    assert replace(frame, sampling=((1, 1),) * 3).coefficients == 72 * 40 * 3
