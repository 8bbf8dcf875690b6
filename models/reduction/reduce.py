"""Fuses, merges, pools or transforms the patches of a batch after a stage's attention."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from models.plan import StagePlan
from models.ragged import Tokens
from models.reduction.by_runs import reduced_by_runs
from models.reduction.in_one import reduced_in_one
from models.reduction.reducible import KeysOf, Reducible
from models.schedule import Reducer
from models.token_pool import TokenPool

# Reducers after which attention is biased by sizes.
_SIZED: frozenset[Reducer] = frozenset(("merge", "pool", "transform"))


def reduce(
    tokens: Tokens,
    keys: KeysOf,
    pool: TokenPool | None,
    attention: Float[Tensor, "B H N"] | None,
    values: Float[Tensor, "B N"],
    stage: StagePlan,
    prefix: int,
    tables: Sequence[Tensor],
) -> Tokens:
    """Fuse, merge, pool or transform patches after the stage's attention, down to the stage's ``counts``.
    ``attention``: None if no image fuses. For the other arguments, see `Reducible`."""
    sizes = tokens.sizes
    if sizes is None:
        sizes = torch.ones(sum(tokens.packing.lengths), device=tokens.rows.device)
    weights = values if attention is None else attention.mean(dim=1)
    batch = Reducible(tokens, sizes, keys, pool, weights, values, stage, prefix, tables)
    left = reduced_by_runs(batch) if stage.reduction is None else reduced_in_one(batch, stage.reduction)
    bias = None
    if tokens.bias is not None or not _SIZED.isdisjoint(stage.reducers):
        # ToMe's proportional attention: a token of s patches counts s times as a key. EViT's fused token
        # counts once.
        counted = left.sizes.masked_fill(left.ids < 0, 1) if "fuse" in stage.reducers else left.sizes
        bias = counted.log().to(left.rows.dtype)
    bounds = None if stage.bounds_after is None else tables[stage.bounds_after]
    return Tokens(left.rows, stage.after, stage.counts, left.ids, left.sizes, bias, bounds, tokens.rotations)
