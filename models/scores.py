"""How the logits of a model become scores. No torch: front ends use it too."""

from typing import Literal

# "softmax" over all classes, or an independent "sigmoid" per class, for images with several labels.
Scores = Literal["softmax", "sigmoid"]


def scores_for(problem: object, classes: int) -> Scores:
    """Choose the scores from the ``problem_type`` of a config.json, like transformers' pipeline: sigmoid for
    multi-label classification, and for a single class, whose softmax would always be 1."""
    return "sigmoid" if problem == "multi_label_classification" or classes == 1 else "softmax"
