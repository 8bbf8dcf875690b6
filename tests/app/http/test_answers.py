"""Answers as JSON: what test_classify.py does not see over HTTP."""

import io

import numpy as np
import pytest
from PIL import Image

from app.engine.client import Classified
from app.engine.messages import Answer
from app.http.answers import image_result, longest, mask_picture, server_timing
from tests.app.fakes import MODEL


def test_a_mask_picture_of_a_grid_that_does_not_divide_the_image_covers_all_of_it() -> None:
    """Patch borders are placed by proportion: each pixel belongs to exactly one patch."""
    pixels = np.full((7, 11, 3), 200, np.uint8)
    cells = np.array([[1, 0, 1], [0, 1, 0]], np.uint8)
    picture = np.asarray(Image.open(io.BytesIO(mask_picture(cells, pixels))))
    rows = [0, 0, 0, 0, 1, 1, 1]  # 7 rows in 2
    columns = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]  # 11 columns in 3
    expected = np.where(cells[np.ix_(rows, columns)] == 1, 200, 50)
    assert np.array_equal(picture, np.repeat(expected[..., np.newaxis], 3, axis=2))


@pytest.mark.parametrize("kept", [0, 1])
def test_a_mask_of_everything_or_nothing_is_the_image_or_all_dimmed(kept: int) -> None:
    """Where nothing is pruned the picture is what the model saw, to the bit."""
    pixels = np.random.default_rng(1).integers(0, 256, (21, 35, 3), np.uint8)
    picture = np.asarray(Image.open(io.BytesIO(mask_picture(np.full((3, 5), kept, np.uint8), pixels))))
    assert np.array_equal(picture, pixels if kept else pixels // 4)


def test_stages_and_kept_patches_must_agree() -> None:
    """An engine that answers for another number of stages than its model has is not believed."""
    answer = Answer(
        id=1, classes=[0], scores=[1.0], kept_counts=(8,), compute=0.5, queue_s=0.0, compute_s=0.0
    )
    classified = Classified(answer, (np.arange(8, dtype=np.uint16),))
    with pytest.raises(ValueError, match="shorter"):
        image_result(
            classified,
            MODEL,
            keep_ratio=0.5,
            criterion="variance",
            mask="indices",
            every_stage=False,
            pixels=np.zeros((21, 35, 3), np.uint8),
        )


def test_server_timing_has_the_headers_form() -> None:
    """Phases as metrics with a duration in milliseconds, separated by commas (W3C Server Timing)."""
    assert server_timing({"decode": 1.5, "total": 20.25}) == "decode;dur=1.500, total;dur=20.250"


def test_longest_is_in_milliseconds() -> None:
    """Of several images the longest of a phase is told."""
    assert longest([0.001, 0.0123456, 0.002]) == 12.346
