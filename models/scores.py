"""How the logits of a model become scores. No torch: front ends use it, too."""

from typing import Literal

# "softmax" over all classes, or "sigmoid" of each class by itself: several may be true of one image.
Scores = Literal["softmax", "sigmoid"]


def scores_for(problem: object, classes: int) -> Scores:
    """As transformers' pipeline chooses them, from the ``problem_type`` of a config.json: sigmoids for
    several labels an image, and for a lone one, whose softmax is always 1."""
    return "sigmoid" if problem == "multi_label_classification" or classes == 1 else "softmax"
