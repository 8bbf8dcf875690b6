"""A prediction is checked before it is believed: counts must be those that were asked for, and scores
numbers. Pure."""

import math

import numpy as np

from app.messages.image import Ask, Prediction


def check_prediction(prediction: Prediction, asked: Ask, classes: int, features: int) -> None:
    """Raises ValueError where it is no answer to what was asked of a model with so many classes, whose
    feature vectors have so many numbers."""
    least = min(asked.top_k, classes, 1)
    if not least <= len(prediction.classes) == len(prediction.scores) <= asked.top_k:
        raise ValueError(
            f"{len(prediction.classes)} labels and {len(prediction.scores)} scores for {asked.top_k} asked"
        )
    if not all(0 <= number < classes for number in prediction.classes):
        raise ValueError(f"labels {prediction.classes} of a model with {classes} classes")
    if not all(map(math.isfinite, (*prediction.scores, prediction.keep_ratio, prediction.compute))):
        raise ValueError("scores that are no numbers")
    if len(prediction.kept) != (len(prediction.kept_counts) if asked.kept_patches else 0):
        raise ValueError(f"the kept patches of {len(prediction.kept)} stages")
    if (prediction.logits is not None) != asked.logits:
        raise ValueError("logits that were not asked for, or none that were")
    kept = prediction.kept_patches
    if asked.kept_patches and tuple(len(stage) for stage in kept) != prediction.kept_counts:
        raise ValueError("other patches than it counts")
    logits = prediction.all_logits
    if logits is not None and (len(logits) != classes or not np.isfinite(logits).all()):
        raise ValueError(f"logits that are no {classes} numbers")
    if (prediction.features is not None) != asked.features:
        raise ValueError("features that were not asked for, or none that were")
    vector = prediction.feature_vector
    if vector is not None and (len(vector) != features or not np.isfinite(vector).all()):
        raise ValueError(f"features that are no {features} numbers")
