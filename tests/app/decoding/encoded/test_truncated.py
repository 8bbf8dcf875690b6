"""JPEGs that end too soon."""

import io

import numpy as np
import pytest
from PIL import Image

from app.decoding.images import FORMATS, ImageLimits, decode
from app.errors import UndecodableImage
from models.jpeg_end import share_of_rows
from models.transforms import InputSpec
from tests.app.decoding.encoded.files import LIMITS, encoded, noisy, seen

SQUARE = InputSpec((240, 320), (0.5,) * 3, (0.5,) * 3)
ANSWER = ImageLimits(LIMITS.pixels, "answer")
JPEG = encoded(noisy(), "JPEG", quality=90)
PROGRESSIVE = encoded(noisy(), "JPEG", quality=90, progressive=True)


def cut(share: float, data: bytes = JPEG) -> bytes:
    start = data.index(b"\xff\xda")
    return data[: start + int((len(data) - start) * share)]


def test_a_jpeg_without_its_end_mark_is_whole() -> None:
    """All pixels are there: it is answered without a word, whatever the setting."""
    for limits in (LIMITS, ANSWER):
        answer = seen(JPEG[:-2], limits)
        assert np.array_equal(answer.pixels, seen(JPEG).pixels)
        assert answer.warnings == ()


@pytest.mark.parametrize("data", [cut(0.95), cut(0.6), cut(0.1), PROGRESSIVE[:-2], cut(0.5, PROGRESSIVE)])
def test_a_cut_jpeg_is_refused_by_default_in_words_that_name_the_setting(data: bytes) -> None:
    """Nothing is guessed about the rest unless the operator says so."""
    with pytest.raises(UndecodableImage, match=r"is truncated.*--truncated-images answer"):
        seen(data)


@pytest.mark.parametrize("share", [0.95, 0.8, 0.6])
def test_a_cut_jpeg_is_answered_with_a_warning_where_the_setting_says_so(share: float) -> None:
    """The rows that are there are those of the whole picture, and the warning says how many they are."""
    answer = decode(cut(share), SQUARE, ANSWER)
    whole = decode(JPEG, SQUARE, ANSWER).pixels
    (warning,) = answer.warnings
    assert warning.startswith("the JPEG is truncated: ")
    rows = share_of_rows(cut(share))
    assert f"{rows:.0%} of its rows are present" in warning
    assert abs(rows - share) < 0.1
    there = int(rows * 240) - 16
    assert np.array_equal(answer.pixels[:there], whole[:there])
    assert not np.array_equal(answer.pixels, whole)


@pytest.mark.parametrize("share", [0.45, 0.1, 0.01])
def test_less_than_half_a_picture_is_never_answered(share: float) -> None:
    """An answer would be a guess."""
    with pytest.raises(UndecodableImage, match="less than 50% of its rows are present"):
        seen(cut(share), ANSWER)


def test_a_cut_progressive_jpeg_needs_its_first_scan() -> None:
    """With it the whole picture is there, but coarsely; without, there is nothing to see."""
    (warning,) = seen(cut(0.7, PROGRESSIVE), ANSWER).warnings
    assert "less sharp" in warning
    with pytest.raises(UndecodableImage, match="less than 50%"):
        seen(cut(0.01, PROGRESSIVE), ANSWER)


@pytest.mark.parametrize("file_format", sorted(set(FORMATS) - {"JPEG"}))
def test_other_formats_are_refused_when_cut(file_format: str) -> None:
    """The setting is for JPEGs alone."""
    data = encoded(noisy(), file_format)
    with pytest.raises(UndecodableImage):
        seen(data[: int(len(data) * 0.9)], ANSWER)


def test_every_last_byte_counts() -> None:
    """Cut anywhere near its end, a picture is refused or the same: it is never another without a word."""
    whole = seen(JPEG).pixels
    for missing in range(1, 200):
        try:
            answer = seen(JPEG[:-missing])
        except UndecodableImage:
            continue
        assert np.array_equal(answer.pixels, whole), missing


def test_a_camera_jpeg_with_two_pictures_is_not_cut() -> None:
    """The end of the second one is missing; the first is whole."""
    frames = [noisy(), noisy().rotate(90)]
    file = io.BytesIO()
    frames[0].save(file, "MPO", save_all=True, append_images=frames[1:], quality=90)
    assert Image.open(io.BytesIO(file.getvalue())).format == "MPO"
    answer = seen(file.getvalue()[:-5000])
    assert np.array_equal(answer.pixels, seen(file.getvalue()).pixels)
    assert answer.warnings == ()
