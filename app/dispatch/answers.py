"""An answer is checked before it is believed: counts must be those that were asked for, and scores numbers.
Pure."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt16

from app.messages.image import Ask
from app.messages.to_front_end import Answer


@dataclass(frozen=True, slots=True)
class Classified:
    """An answer with its kept patches and, if asked for, its logits; see models.classifier.Prediction for
    their meaning."""

    answer: Answer
    kept: tuple[UInt16[np.ndarray, " kept"], ...]
    logits: Float32[np.ndarray, " classes"] | None = None


def read_answer(answer: Answer, asked: Ask, classes: int) -> Classified:
    """The answer with its arrays, of a model with so many classes. Raises ValueError where it is no answer to
    what was asked."""
    if not 0 < len(answer.classes) == len(answer.scores) <= asked.top_k:
        raise ValueError(
            f"{len(answer.classes)} labels and {len(answer.scores)} scores for {asked.top_k} asked"
        )
    if not all(0 <= number < classes for number in answer.classes):
        raise ValueError(f"labels {answer.classes} of a model with {classes} classes")
    if not all(math.isfinite(number) for number in (*answer.scores, answer.keep_ratio, answer.compute)):
        raise ValueError("scores that are no numbers")
    if len(answer.kept) != (len(answer.kept_counts) if asked.kept_patches else 0):
        raise ValueError(f"the kept patches of {len(answer.kept)} stages")
    if (answer.logits is not None) != asked.logits:
        raise ValueError("logits that were not asked for, or none that were")
    kept = tuple(np.frombuffer(stage, "<u2") for stage in answer.kept)
    if asked.kept_patches and tuple(len(stage) for stage in kept) != answer.kept_counts:
        raise ValueError("other patches than it counts")
    logits = None if answer.logits is None else np.frombuffer(answer.logits, "<f4")
    if logits is not None and (len(logits) != classes or not np.isfinite(logits).all()):
        raise ValueError(f"logits that are no {classes} numbers")
    return Classified(answer, kept, logits)
