"""Mixup, CutMix and random erasing of a batch with timm's classes, seeded per step."""

import random

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from models.training.config import TrainConfig


class Mixing:
    """Applies random erasing, mixup or CutMix, and label smoothing to a normalized batch."""

    def __init__(self, config: TrainConfig, classes: int, device: str) -> None:
        self._classes = classes
        self._smoothing = config.label_smoothing
        self._mixup = None
        if config.mixup or config.cutmix:
            self._mixup = Mixup(
                config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=classes
            )
        self._erasing = RandomErasing(config.erasing, mode="pixel", device=device) if config.erasing else None

    def __call__(
        self, inputs: Float[Tensor, "B C height width"], truth: Int[Tensor, " B"], seed: int
    ) -> tuple[Float[Tensor, "B C height width"], Float[Tensor, "B classes"]]:
        """Return the augmented images and the target distribution over classes (smoothed labels)."""
        # timm's classes use the global generators of random and numpy. The step has already seeded torch's.
        random.seed(seed)
        np.random.seed(seed % 2**32)
        if self._erasing is not None:
            inputs = self._erasing(inputs)
        if self._mixup is not None:
            inputs, wanted = self._mixup(inputs, truth)
            return inputs, wanted
        return inputs, self.targets(truth)

    def targets(self, truth: Int[Tensor, " B"]) -> Float[Tensor, "B classes"]:
        """Return the smoothed labels."""
        hard = F.one_hot(truth, self._classes).float()
        return hard * (1 - self._smoothing) + self._smoothing / self._classes
