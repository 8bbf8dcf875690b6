"""Embeddings as they are told."""

import numpy as np
import pytest

from app.inference.embeddings import embedding_of
from app.messages.image import Prediction


def prediction(*features: float) -> Prediction:
    return Prediction([], [], (), 1.0, 1.0, 1, features=np.array(features, "<f4").tobytes())


def test_the_length_becomes_1() -> None:
    """By hand: 3, 4 has the length 5."""
    assert embedding_of(prediction(3, -4), normalize=False).tolist() == [3, -4]
    assert embedding_of(prediction(3, -4), normalize=True).tolist() == pytest.approx([0.6, -0.8])


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_no_length_makes_numbers_that_are_none(size: float) -> None:
    """Squares of float32 numbers overflow or vanish in float32."""
    found = embedding_of(prediction(size, size), normalize=True)
    assert np.isfinite(found).all()
    assert np.linalg.norm(found) == pytest.approx(1 if size > 1e-20 else 0, abs=1e-6)
