"""Pixels are copied as they are, or not at all."""

import numpy as np
import pytest

from app.messages.pixels import copy_pixels


def test_pixels_are_copied_whatever_their_order() -> None:
    """Bit for bit, also from a view that is turned."""
    pixels = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(5, 2, 3).transpose(1, 0, 2)
    target = np.zeros((2, 5, 3), np.uint8)
    copy_pixels(target, pixels)
    assert np.array_equal(target, pixels)


def test_pixels_of_another_shape_are_refused() -> None:
    """One row would else become all of them."""
    target = np.zeros((2, 5, 3), np.uint8)
    with pytest.raises(ValueError, match=r"shape \(1, 5, 3\)"):
        copy_pixels(target, np.ones((1, 5, 3), np.uint8))
    assert not target.any()
