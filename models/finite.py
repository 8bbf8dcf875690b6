"""Whether a tensor has only finite values."""

import torch
from torch import Tensor


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite.

    A sum is only finite if all its terms are, and it takes a fraction of the time. It may overflow even if
    all values are finite, so every value is checked if the sum is not finite.
    """
    return bool(tensor.sum().isfinite()) or bool(torch.isfinite(tensor).all())
