"""What a worker answers is checked before it is believed."""

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from app.dispatch.answers import check_prediction
from app.messages.image import Ask, Prediction
from models.schedule import UNPRUNED

CLASSES, FEATURES = 11, 3
PREDICTION = Prediction(
    classes=[7, 0], scores=[0.75, 0.125], kept_counts=(3, 2), keep_ratio=0.5, compute=0.75, runs=1
)
KEPT = (np.array([0, 5, 300], "<u2").tobytes(), np.array([5, 300], "<u2").tobytes())
LOGITS = np.arange(CLASSES, dtype="<f4").tobytes()
VECTOR = np.arange(FEATURES, dtype="<f4").tobytes()


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("features", [False, True])
def test_a_sound_prediction_is_believed(kept: bool, logits: bool, features: bool) -> None:
    """With exactly what was asked for."""
    found = msgspec.structs.replace(
        PREDICTION,
        kept=KEPT if kept else (),
        logits=LOGITS if logits else None,
        features=VECTOR if features else None,
    )
    ask = Ask(UNPRUNED, 2, kept_patches=kept, logits=logits, features=features)
    check_prediction(found, ask, CLASSES, FEATURES)
    vector = found.feature_vector
    assert (None if vector is None else vector.tolist()) == ([0, 1, 2] if features else None)
    assert [stage.tolist() for stage in found.kept_patches] == ([[0, 5, 300], [5, 300]] if kept else [])
    of_all = found.all_logits
    assert (None if of_all is None else of_all.tolist()) == (list(range(CLASSES)) if logits else None)


@pytest.mark.parametrize(
    ("changes", "asked", "words"),
    [
        ({"classes": [7]}, {}, "1 labels and 2 scores"),
        ({"classes": [], "scores": []}, {}, "0 labels"),
        ({}, {"top_k": 1}, "2 labels and 2 scores, but top_k is 1"),
        ({"classes": [7, 11]}, {}, "not all below 11"),
        ({"classes": [7, -1]}, {}, "not all below 11"),
        ({"scores": [0.75, math.nan]}, {}, "is not a finite number"),
        ({"compute": math.inf}, {}, "is not a finite number"),
        ({"kept": KEPT}, {}, "the kept patches of 2 stages"),
        ({"kept": KEPT[:1]}, {"kept_patches": True}, "the kept patches of 1 stages"),
        ({"kept": (KEPT[0], KEPT[0])}, {"kept_patches": True}, "the numbers of kept patches do not match"),
        ({"kept": (KEPT[0], b"odd")}, {"kept_patches": True}, "buffer size"),
        ({}, {"logits": True}, "logits that were not requested, or no logits"),
        ({"logits": LOGITS}, {}, "logits that were not requested, or no logits"),
        ({"logits": LOGITS[:-4]}, {"logits": True}, "not 11 finite numbers"),
        (
            {"logits": LOGITS[:-4] + np.array([np.nan], "<f4").tobytes()},
            {"logits": True},
            "not 11 finite numbers",
        ),
        ({}, {"features": True}, "features that were not requested, or no features"),
        ({"features": VECTOR}, {}, "features that were not requested, or no features"),
        ({"features": VECTOR[:-4]}, {"features": True}, "the features are not 3 finite numbers"),
        (
            {"features": VECTOR[:-4] + np.array([np.inf], "<f4").tobytes()},
            {"features": True},
            "not 3 finite numbers",
        ),
        ({}, {"top_k": 0}, "2 labels and 2 scores, but top_k is 0"),
    ],
    ids=str,
)
def test_an_answer_to_something_else_is_not_believed(
    changes: dict[str, Any], asked: dict[str, Any], words: str
) -> None:
    """Too many, too few, out of range, or no number: nothing of it may reach a client."""
    prediction = msgspec.structs.replace(PREDICTION, **changes)
    with pytest.raises(ValueError, match=words):
        check_prediction(prediction, Ask(UNPRUNED, **{"top_k": 3, **asked}), CLASSES, FEATURES)


def test_a_model_without_a_head_answers_without_labels() -> None:
    """Its features are all that there is; of a model with classes, labels that were asked for must come."""
    found = msgspec.structs.replace(PREDICTION, classes=[], scores=[], features=VECTOR)
    check_prediction(found, Ask(UNPRUNED, 1, features=True), 0, FEATURES)
    check_prediction(found, Ask(UNPRUNED, 0, features=True), CLASSES, FEATURES)
    with pytest.raises(ValueError, match="0 labels"):
        check_prediction(found, Ask(UNPRUNED, 1, features=True), CLASSES, FEATURES)
