"""Creates kernels in advance. oneDNN needs one for each new number of rows of a layer (docs/design/0023)."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from models.linear.mlp import mlp
from models.ragged import rounded

# With more rows than this, creating a kernel takes less than a hundredth of a layer's time.
MOST_ROWS = 8192


def make_kernels(
    block: Any,
    projections: Sequence[Callable[[Tensor], object]],
    like: Tensor,
    most_rows: int,
    enough_s: float,
) -> None:
    """Run the linear layers of a block for each number of rows that a pruned batch of up to ``most_rows``
    rows can have, in the dtype of ``like``.

    ``projections``: the layers before the attention. Starts with the smallest numbers, for which creating the
    kernel is the largest share of the time, and stops after ``enough_s`` seconds.
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
