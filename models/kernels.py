"""Kernels made ahead. oneDNN makes one for each number of rows that is new to a layer (docs/design/0023)."""

import time

import torch

from models.attention import computes_parts, keys_and_values, queries
from models.mlp import mlp
from models.pruned_vit import PrunedViT
from models.ragged import rounded
from models.windows import takes_windows

# Making one takes less than a hundredth of what layers with more rows take.
MOST_ROWS = 8192


@torch.inference_mode()
def make_kernels(model: PrunedViT, most_rows: int, enough_s: float) -> None:
    """Compute the linear layers of one block, as all blocks are alike, for each number of rows that a pruned
    batch of up to ``most_rows`` can have.

    The smallest come first, for which a kernel is the largest part of the time, until ``enough_s`` are over.
    Does nothing where new shapes are not slow (see `takes_windows`).
    """
    like = next(model.parameters())
    if not takes_windows(like):
        return
    block = model.vit.blocks[model.stages.blocks[0] if model.stages.blocks else 0]
    attn = block.attn
    began = time.perf_counter()
    rows = rounded(1)
    while rows <= min(most_rows, MOST_ROWS) and time.perf_counter() < began + enough_s:
        normed = like.new_zeros((rows, model.arch.dim))
        attn.qkv(normed)
        if computes_parts(attn):
            queries(attn, normed)
            keys_and_values(attn, normed)
        attn.proj(like.new_zeros((rows, attn.num_heads * attn.head_dim)))
        mlp(block.mlp, normed, exact=False)
        rows = rounded(rows + 1)
