"""Results as JSON: what the tests over HTTP do not see."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.inference.options import ImageOptions
from app.inference.results import image_result, mask_picture
from app.messages.image import Ask, Prediction
from models.schedule import Pruning
from tests.app.fakes import MODEL

CELLS = np.array([[1, 0, 1], [0, 1, 0]], np.uint8)


def brightness(picture: bytes) -> np.ndarray:
    """Of each pixel of a grey picture, [height, width]."""
    shown = np.asarray(Image.open(io.BytesIO(picture)))
    assert (shown == shown[..., :1]).all()
    return shown[..., 0]


def test_a_mask_picture_of_a_grid_that_does_not_divide_the_image_covers_all_of_it() -> None:
    """Each pixel belongs to exactly one patch; what none covers at the end goes with the last."""
    pixels = np.full((7, 11, 3), 200, np.uint8)
    rows = [0, 0, 0, 1, 1, 1, 1]  # patches of 3 rows
    columns = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]  # and of 3 columns
    expected = np.where(CELLS[np.ix_(rows, columns)] == 1, 200, 50)
    assert np.array_equal(brightness(mask_picture(CELLS, pixels, (3, 3), (3, 3))), expected)


def test_a_mask_picture_of_overlapping_patches_shows_each_around_its_centre() -> None:
    """Of patches that overlap, a pixel goes with the one whose centre is nearest."""
    pixels = np.full((8, 11, 3), 200, np.uint8)
    rows = [0, 0, 0, 0, 1, 1, 1, 1]  # patches of 5 rows from 0 and 3: centres 2.5 and 5.5
    columns = [0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2]  # patches of 4 columns from 0, 2 and 4: centres 2, 4 and 6
    expected = np.where(CELLS[np.ix_(rows, columns)] == 1, 200, 50)
    assert np.array_equal(brightness(mask_picture(CELLS, pixels, (5, 4), (3, 2))), expected)


@given(
    patches=st.integers(1, 12), size=st.integers(1, 12), stride=st.integers(1, 12), rest=st.integers(0, 11)
)
def test_in_a_mask_picture_no_other_patch_is_nearer(patches: int, size: int, stride: int, rest: int) -> None:
    """Along a side of any patches, each pixel goes with a patch whose centre is nearest, the last of two."""
    stride = min(stride, size)
    side = (patches - 1) * stride + size + min(rest, stride - 1)
    centres = np.arange(patches) * stride + size / 2
    distances = np.abs(np.arange(side)[:, np.newaxis] + 0.5 - centres)
    nearest = patches - 1 - distances[:, ::-1].argmin(axis=1)
    for patch in range(patches):
        cells = (np.arange(patches) == patch).astype(np.uint8)[:, np.newaxis]
        pixels = np.full((side, 1, 3), 200, np.uint8)
        shown = brightness(mask_picture(cells, pixels, (size, 1), (stride, 1)))[:, 0]
        assert np.array_equal(shown == 200, nearest == patch)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_mask_of_everything_or_nothing_is_the_image_or_all_dimmed(kept: int) -> None:
    """Where nothing is pruned the picture is what the model saw, to the bit."""
    pixels = np.random.default_rng(1).integers(0, 256, (21, 35, 3), np.uint8)
    cells = np.full((3, 5), kept, np.uint8)
    picture = np.asarray(Image.open(io.BytesIO(mask_picture(cells, pixels, (7, 7), (7, 7)))))
    assert np.array_equal(picture, pixels if kept else pixels // 4)


def test_stages_and_kept_patches_must_agree() -> None:
    """A worker that answers for another number of stages than its model has is not believed."""
    kept = np.arange(8, dtype="<u2").tobytes()
    prediction = Prediction([0], [1.0], kept_counts=(8,), keep_ratio=0.5, compute=0.5, runs=1, kept=(kept,))
    with pytest.raises(ValueError, match="shorter"):
        image_result(
            prediction,
            MODEL,
            options=ImageOptions(keep_ratio=0.5, mask="indices"),
            ask=Ask(Pruning(0.5), 1, kept_patches=True),
            picture=None,
            warnings=(),
        )
