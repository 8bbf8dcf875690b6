"""Kernels made ahead. oneDNN makes one for each number of rows that is new to a layer (docs/design/0023)."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from models.linear.mlp import mlp
from models.ragged import rounded

# Making one takes less than a hundredth of what layers with more rows take.
MOST_ROWS = 8192


def make_kernels(
    block: Any,
    projections: Sequence[Callable[[Tensor], object]],
    like: Tensor,
    most_rows: int,
    enough_s: float,
) -> None:
    """Compute the linear layers of a block, the ones before its attention by ``projections``, for each number
    of rows that a pruned batch of up to ``most_rows`` can have, in the dtype of ``like``.

    The smallest come first, for which a kernel is the largest part of the time, until ``enough_s`` are over.
    """
    attn = block.attn
    began = time.perf_counter()
    rows = rounded(1)
    while rows <= min(most_rows, MOST_ROWS) and time.perf_counter() < began + enough_s:
        normed = like.new_zeros((rows, attn.proj.out_features))
        for project in projections:
            project(normed)
        attn.proj(like.new_zeros((rows, attn.proj.in_features)))
        mlp(block.mlp, normed)
        rows = rounded(rows + 1)
