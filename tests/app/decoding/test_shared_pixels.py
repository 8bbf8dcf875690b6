"""Pixels in shared memory: the front end sees what the decoder wrote, and can always read it."""

import os
import sys

import numpy as np
import pytest

from app.decoding.shared_pixels import PixelsWriter, SharedPixels


def picture(height: int, width: int, first: int = 0) -> np.ndarray:
    return (np.arange(height * width * 3) + first).astype(np.uint8).reshape(height, width, 3)


def test_pixels_come_over_whatever_their_size() -> None:
    """Also where an image is larger than all before it, and smaller."""
    shared = SharedPixels()
    writer = PixelsWriter(shared.number)
    for height, width in ((2, 3), (40, 50), (5, 7)):
        shared.reserve(height * width * 3)
        writer.write(picture(height, width))
        assert np.array_equal(shared.view(height, width), picture(height, width))
    shared.close()


def test_the_pixels_are_seen_where_they_are() -> None:
    """Not a copy: the next image takes their place. The end leaves what somebody still looks at."""
    shared = SharedPixels()
    shared.reserve(2 * 3 * 3)
    writer = PixelsWriter(shared.number)
    writer.write(picture(2, 3))
    seen = shared.view(2, 3)
    writer.write(picture(2, 3, first=100))
    shared.close()
    assert not seen.flags.owndata
    assert not seen.flags.writeable
    assert np.array_equal(seen, picture(2, 3, first=100))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no seals")
def test_a_decoder_cannot_make_the_memory_smaller() -> None:
    """Reading beyond its end would kill the front end."""
    shared = SharedPixels()
    shared.reserve(1000)
    with pytest.raises(PermissionError):
        os.ftruncate(shared.number, 10)
    assert shared.view(1, 300).shape == (1, 300, 3)
    shared.close()
