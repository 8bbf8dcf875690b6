"""Checks a worker's prediction before it is used: its counts must match the request, and its scores must be
finite. Pure."""

import math

import numpy as np

from app.messages.image import Ask, Prediction


def check_prediction(prediction: Prediction, asked: Ask, classes: int, features: int) -> None:
    """Raises ValueError if the prediction does not match the request, for a model with this number of classes
    and with feature vectors of this length."""
    least = min(asked.top_k, classes, 1)
    if not least <= len(prediction.classes) == len(prediction.scores) <= asked.top_k:
        raise ValueError(
            f"{len(prediction.classes)} labels and {len(prediction.scores)} scores, but top_k is "
            f"{asked.top_k}"
        )
    if not all(0 <= number < classes for number in prediction.classes):
        raise ValueError(
            f"the labels {prediction.classes} are not all below {classes}, the number of classes"
        )
    if not all(map(math.isfinite, (*prediction.scores, prediction.keep_ratio, prediction.compute))):
        raise ValueError("a score, the keep ratio or the compute is not a finite number")
    if len(prediction.kept) != (len(prediction.kept_counts) if asked.kept_patches else 0):
        raise ValueError(
            f"the kept patches of {len(prediction.kept)} stages, but {len(prediction.kept_counts)} counts"
        )
    if (prediction.logits is not None) != asked.logits:
        raise ValueError("logits that were not requested, or no logits although they were requested")
    kept = prediction.kept_patches
    if asked.kept_patches and tuple(len(stage) for stage in kept) != prediction.kept_counts:
        raise ValueError("the numbers of kept patches do not match their counts")
    logits = prediction.all_logits
    if logits is not None and (len(logits) != classes or not np.isfinite(logits).all()):
        raise ValueError(f"the logits are not {classes} finite numbers")
    if (prediction.features is not None) != asked.features:
        raise ValueError("features that were not requested, or no features although they were requested")
    vector = prediction.feature_vector
    if vector is not None and (len(vector) != features or not np.isfinite(vector).all()):
        raise ValueError(f"the features are not {features} finite numbers")
