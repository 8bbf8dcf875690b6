"""Whether a tensor has only finite values."""

import torch
from torch import Tensor


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite.

    A sum is finite only if all that is summed is, and takes a fraction of the time. It may overflow where all
    values are finite: only then each is looked at.
    """
    return bool(tensor.sum().isfinite()) or bool(torch.isfinite(tensor).all())
