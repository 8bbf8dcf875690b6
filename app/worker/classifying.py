"""Calls the network with requests and predictions of app.messages. It imports torch."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from app.messages.image import Ask, Prediction
from models import classifier
from models.classifier import Classifier


def classify(
    network: Classifier, pixels: UInt8[Tensor, "B height width 3"], asks: Sequence[Ask]
) -> list[Prediction]:
    """One prediction for each image, in order."""
    return [_as_told(one) for one in network.classify(pixels, asks)]


def _as_told(found: classifier.Prediction) -> Prediction:
    return Prediction(
        classes=found.classes.tolist(),
        scores=found.scores.tolist(),
        kept_counts=found.kept_counts,
        keep_ratio=found.keep_ratio,
        compute=found.compute,
        runs=found.runs,
        kept=tuple(stage.astype("<u2").tobytes() for stage in found.kept or ()),
        logits=_bytes_of(found.logits),
        features=_bytes_of(found.features),
    )


def _bytes_of(values: Float[np.ndarray, " numbers"] | None) -> bytes | None:
    return None if values is None else values.astype("<f4").tobytes()
