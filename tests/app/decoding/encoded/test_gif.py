"""GIFs with more in them than a picture."""

import numpy as np
import pytest
from PIL import Image

from app.decoding.encoded.gif import MOST_BLOCKS, without_extensions
from app.errors import UndecodableImage
from tests.app.decoding.encoded.files import encoded, noisy, seen

TRANSPARENT = encoded(noisy().quantize(16), "GIF", transparency=3)
HEAD = 13 + 3 * 16
CONTROL = b"\x21\xf9\x04"


def test_the_file_is_as_these_tests_take_it() -> None:
    """Its table of colours ends where its first extension begins."""
    assert TRANSPARENT[HEAD : HEAD + 3] == CONTROL


@pytest.mark.parametrize(
    "extension",
    [
        b"\x21\xfe" + (b"\xff" + b"c" * 255) * 20_000 + b"\0",
        b"\x21\xfe\x01a\0" * 20_000,
        b"\x21\xff\x0bNETSCAPE2.0\x03\1\0\0\0",
        b"\x21\x01\x0c" + bytes(12) + b"\0",
    ],
    ids=["long comment", "many comments", "loop", "plain text"],
)
def test_extensions_before_the_first_frame_are_left_out(extension: bytes) -> None:
    """All but the one that says which colour is transparent."""
    data = TRANSPARENT[:HEAD] + extension + TRANSPARENT[HEAD:]
    assert without_extensions(data) == TRANSPARENT
    assert np.array_equal(seen(data).pixels, seen(TRANSPARENT).pixels)


@pytest.mark.parametrize("extension", [b"\x21\xfe\x01a\0" * 4_000_000, b"\x21\xfe" + b"\x01a" * 9_000_000])
def test_millions_of_blocks_are_refused_unread(extension: bytes) -> None:
    """Comments of a letter, or one comment of as many pieces."""
    with pytest.raises(UndecodableImage, match=f"more than {MOST_BLOCKS} blocks"):
        seen(TRANSPARENT[:HEAD] + extension + TRANSPARENT[HEAD:])


def test_a_million_frames_cost_nothing() -> None:
    """Only the first is looked at."""
    frame = CONTROL + b"\0\0\0\0\0\x2c\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"
    assert np.array_equal(seen(TRANSPARENT[:-1] + frame * 10**6 + b";").pixels, seen(TRANSPARENT).pixels)


@pytest.mark.parametrize("options", [{"transparency": 1}, {}], ids=["transparent color", "none"])
def test_a_first_frame_that_does_not_fill_the_picture_stands_at_its_place(options: dict[str, int]) -> None:
    """What lies around it is transparent, and so white, as in browsers."""
    image = encoded(Image.new("P", (4, 2), 0), "GIF", **options)
    # A screen of 8 x 4, the frame at 4, 2.
    data = image[:6] + b"\x08\0\x04\0" + image[10:]
    frame = data.index(b"\x2c\0\0\0\0\x04\0\x02\0")
    data = data[: frame + 1] + b"\x04\0\x02\0" + data[frame + 5 :]
    pixels = seen(data).pixels
    assert (pixels[-1, -1] == 0).all()
    assert (pixels[0, 0] == 255).all()


@pytest.mark.parametrize("length", range(0, len(TRANSPARENT), 37))
def test_a_cut_file_stays_for_the_decoder(length: int) -> None:
    """Nothing is guessed about it."""
    assert without_extensions(TRANSPARENT[:length]) == TRANSPARENT[:length]
