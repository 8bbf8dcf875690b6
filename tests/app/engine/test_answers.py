"""What an engine answers is checked before it is believed."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from app.engine.answers import read_answer
from app.engine.messages import Answer
from tests.app.engine.rig import submit

CLASSES = 11
ANSWER = Answer(
    id=1,
    classes=[7, 0],
    scores=[0.75, 0.125],
    kept_counts=(3, 2),
    keep_ratio=0.5,
    compute=0.75,
    runs=1,
    queue_s=0.25,
    compute_s=0.5,
)
KEPT = [np.array([0, 5, 300], "<u2").tobytes(), np.array([5, 300], "<u2").tobytes()]
LOGITS = np.arange(CLASSES, dtype="<f4").tobytes()


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("logits", [False, True])
def test_a_sound_answer_is_read(kept: bool, logits: bool) -> None:
    """With exactly what was asked for."""
    frames = [*(KEPT if kept else ()), *([LOGITS] if logits else ())]
    found = read_answer(ANSWER, frames, submit(kept_patches=kept, logits=logits, top_k=2), CLASSES)
    assert found.answer is ANSWER
    assert [stage.tolist() for stage in found.kept] == ([[0, 5, 300], [5, 300]] if kept else [])
    assert (found.logits is not None) == logits
    if found.logits is not None:
        assert found.logits.tolist() == list(range(CLASSES))


@pytest.mark.parametrize(
    ("changes", "asked", "frames", "words"),
    [
        ({"classes": [7]}, {}, [], "1 labels and 2 scores"),
        ({"classes": [], "scores": []}, {}, [], "0 labels"),
        ({}, {"top_k": 1}, [], "2 labels and 2 scores for 1 asked"),
        ({"classes": [7, 11]}, {}, [], "of a model with 11 classes"),
        ({"classes": [7, -1]}, {}, [], "of a model with 11 classes"),
        ({"scores": [0.75, math.nan]}, {}, [], "no numbers"),
        ({"compute": math.inf}, {}, [], "no numbers"),
        ({}, {}, KEPT, "2 frames where 0 were asked for"),
        ({}, {"kept_patches": True}, KEPT[:1], "1 frames where 2"),
        ({}, {"kept_patches": True}, [KEPT[0], KEPT[0]], "other patches than it counts"),
        ({}, {"kept_patches": True}, [KEPT[0], b"odd"], "buffer size"),
        ({}, {"logits": True}, [], "0 frames where 1"),
        ({}, {"logits": True}, [LOGITS[:-4]], "no 11 numbers"),
        ({}, {"logits": True}, [LOGITS[:-4] + np.array([np.nan], "<f4").tobytes()], "no 11 numbers"),
    ],
    ids=str,
)
def test_an_answer_to_something_else_is_not_believed(
    changes: dict[str, Any], asked: dict[str, Any], frames: Sequence[bytes], words: str
) -> None:
    """Too many, too few, out of range, or no number: nothing of it may reach a client."""
    answer = msgspec.structs.replace(ANSWER, **changes)
    with pytest.raises(ValueError, match=words):
        read_answer(answer, frames, submit(**{"top_k": 3, **asked}), CLASSES)
