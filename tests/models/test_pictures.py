"""Pixels as PNG files."""

import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from models.pictures import png_of


@given(
    arrays(
        np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)), elements=st.integers(0, 255)
    )
)
def test_a_png_holds_the_pixels(pixels: np.ndarray) -> None:
    """Pillow, which checks every chunk's sum, reads exactly what was written."""
    with Image.open(io.BytesIO(png_of(pixels))) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(picture), pixels)
