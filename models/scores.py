"""How the logits of a model become scores. No torch: front ends are told it, too."""

from typing import Literal

# "softmax" over all classes, or "sigmoid" of each class by itself: several may be true of one image.
Scores = Literal["softmax", "sigmoid"]
