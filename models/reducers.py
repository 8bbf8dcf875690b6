"""Reducers other than `drop`: what becomes of the patches that are not kept. Pure tensor functions.

`fuse` is EViT's (arXiv 2202.07800, section 3.3), with weights that sum to 1. `merge` is ToMe's bipartite soft
matching (arXiv 2210.09461, section 3): similar pairs are averaged, weighted by the number of patches that
each already represents. `transform` follows Token Transforming (arXiv 2506.05709): each kept patch becomes a
mean of all patches, weighted by similarity. docs/methods.md says what was reconstructed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

# The softmax temperature of `transform`, which divides the cosine similarities.
TEMPERATURE = 0.001
# The minimum size of a mean, because its logarithm is added to logits.
_LEAST_SIZE = 2.0**-10


def fuse(
    patches: Float[Tensor, "B N D"], attention: Float[Tensor, "B N"], kept: Int[Tensor, "B count"]
) -> Float[Tensor, "B 1 D"]:
    """Fuse all patches that are not ``kept`` into one token: their mean, weighted by the attention they
    receive."""
    dropped = torch.ones_like(attention, dtype=torch.bool).scatter(1, kept, value=False)
    return fuse_dropped(patches, attention, dropped)


def fuse_dropped(
    patches: Float[Tensor, "B N D"], attention: Float[Tensor, "B N"], dropped: Bool[Tensor, "B N"]
) -> Float[Tensor, "B 1 D"]:
    """Like `fuse`, for a mask of the patches to fuse."""
    weights = attention * dropped
    # If the attention of all of them underflows to 0, use the plain mean.
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, dropped)
    weights = weights / weights.sum(1, keepdim=True)
    return weights.unsqueeze(1).to(patches.dtype) @ patches


@dataclass(frozen=True, slots=True)
class RoundTables:
    """A `plan.Round` with its tables on the device; they are None if all images are alike."""

    pairs: int
    left: int
    missing_odd: Bool[Tensor, "B odd 1"] | None = None
    missing_even: Bool[Tensor, "B 1 even"] | None = None
    unmatched: Bool[Tensor, "B odd"] | None = None
    gone: Int[Tensor, "B odd"] | None = None
    missing: Int[Tensor, "B N"] | None = None


def merge(
    patches: Float[Tensor, "B N D"],
    keys: Float[Tensor, "B N K"],
    sizes: Float[Tensor, "B N"],
    count: int,
    rounds: Sequence[RoundTables] | None = None,
) -> tuple[Float[Tensor, "B count D"], Float[Tensor, "B count"], Int[Tensor, "B count"]]:
    """Merge the most similar pairs until ``count`` patches are left, 1 <= count <= N.

    Returns the merged patches, the number of original patches that each represents, and its position, which
    is that of the partner that it was merged into. Patches keep their order. A round can at most halve the
    number of patches, so keeping fewer than half takes several rounds.

    For images that differ in how many of the N patches they have or keep, pass the ``rounds`` of their plan;
    ``count`` is then the maximum that an image keeps. Values after an image's last patch are undefined.
    """
    positions = torch.arange(patches.shape[1], device=patches.device).expand(len(patches), -1)
    metric = keys.float()
    for one in rounds_to(patches.shape[1], count) if rounds is None else rounds:
        target, left = _match(metric, one)
        merged_sizes = _summed(sizes.unsqueeze(2), target)
        if one.missing is not None:
            merged_sizes = merged_sizes.clamp(min=1)  # no division by 0 for missing patches
        patches = _mean(patches, sizes, merged_sizes, target, left)
        metric = _mean(metric, sizes, merged_sizes, target, left)
        sizes = merged_sizes.squeeze(2).gather(1, left)
        positions = positions.gather(1, left)
    return patches, sizes, positions


def rounds_to(patches: int, count: int) -> list[RoundTables]:
    """The rounds that merge ``patches`` patches into ``count``, for images that are all alike."""
    rounds = []
    while patches > count:
        pairs = min(patches - count, patches // 2)
        patches -= pairs
        rounds.append(RoundTables(pairs, patches))
    return rounds


@torch.no_grad()
def _match(
    metric: Float[Tensor, "B N K"], one: RoundTables
) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B left"]]:
    """Match patches for a round of merging. Returns the position that each patch is merged into (its own or
    its partner's), and the positions that are left, ascending.

    Each patch at an odd position is matched with the most similar one at an even position, and the best of
    these pairs are merged.
    """
    images, patches, _ = metric.shape
    unit = F.normalize(metric, dim=2)
    similarity = unit[:, 1::2] @ unit[:, ::2].transpose(1, 2)
    if one.missing_odd is not None and one.missing_even is not None:
        similarity = similarity.masked_fill(one.missing_odd | one.missing_even, -torch.inf)
    likeness, partner = similarity.max(dim=2)
    best = likeness.argsort(dim=1, descending=True, stable=True)[:, : one.pairs]
    odd, even = 2 * best + 1, 2 * partner.gather(1, best)
    if one.unmatched is not None:
        even = torch.where(one.unmatched, odd, even)
    target = torch.arange(patches, device=metric.device).repeat(images, 1)
    target.scatter_(1, odd, even)
    if one.gone is None or one.missing is None:
        gone = torch.zeros_like(target).scatter(1, odd, 1)
    else:
        gone = one.missing.scatter(1, odd, one.gone)
    # A stable sort moves the patches that are gone to the end and keeps the order of the others.
    left = gone.argsort(dim=1, stable=True)[:, : one.left]
    return target, left


def _summed(values: Float[Tensor, "B N D"], target: Int[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
    return torch.zeros_like(values).scatter_add(1, target.unsqueeze(2).expand_as(values), values)


def _mean(
    values: Float[Tensor, "B N D"],
    sizes: Float[Tensor, "B N"],
    merged_sizes: Float[Tensor, "B N 1"],
    target: Int[Tensor, "B N"],
    left: Int[Tensor, "B left"],
) -> Float[Tensor, "B left D"]:
    """The mean of the patches merged into each remaining position, weighted by their sizes. Computed in
    float32 and returned in the dtype of ``values``."""
    summed = _summed(values.float() * sizes.unsqueeze(2), target)
    index = left.unsqueeze(2)
    mean = summed.gather(1, index.expand(-1, -1, values.shape[2])) / merged_sizes.gather(1, index)
    return mean.to(values.dtype)


def transform(
    patches: Float[Tensor, "B N D"],
    keys: Float[Tensor, "B N K"],
    sizes: Float[Tensor, "B N"],
    kept: Int[Tensor, "B count"],
    beyond: Bool[Tensor, "B count"] | None = None,
    gaps: Bool[Tensor, "B N"] | None = None,
) -> tuple[Float[Tensor, "B count D"], Float[Tensor, "B count"]]:
    """Turn each of the ``kept`` positions into a token. Returns the tokens and the number of patches that
    each represents.

    A token is a weighted mean of all patches. The weight of a patch is exp(cosine similarity of the ``keys``
    / TEMPERATURE) times its size (``sizes``, the number of patches that it represents). The weights of a
    token are normalised to sum to 1. The size of a patch is divided among the tokens in proportion to its
    weights in them, so the total size does not change. Computed in float32.

    For images that differ: ``beyond`` is True for positions after the last one that an image keeps, ``gaps``
    for places without a patch. Values after an image's last token are undefined.
    """
    with torch.autocast(patches.device.type, enabled=False):
        unit = F.normalize(keys.float(), dim=2)
        chosen = torch.take_along_dim(unit, kept.unsqueeze(2), dim=1)
        return weighted_means(patches, chosen @ unit.mT / TEMPERATURE, sizes, beyond, gaps)


def weighted_means(
    rows: Float[Tensor, "B N D"],
    logits: Float[Tensor, "B count N"],
    sizes: Float[Tensor, "B N"],
    beyond: Bool[Tensor, "B count"] | None,
    gaps: Bool[Tensor, "B N"] | None,
) -> tuple[Float[Tensor, "B count D"], Float[Tensor, "B count"]]:
    """Means of all rows, weighted by the softmax of ``logits`` over the rows, and the number of patches that
    each mean represents.

    ``sizes``: the number of patches that each row represents. A row's weight is multiplied by its size, and
    its size is divided among the means in proportion to its weights in them. ``beyond``: True for means that
    an image does not have. ``gaps``: True for rows that it does not have.
    """
    least = torch.finfo(torch.float32).min  # not -inf, because -inf minus -inf is NaN
    with torch.autocast(rows.device.type, enabled=False):
        logits = logits + sizes.log().unsqueeze(1)
        if gaps is not None:
            logits = logits.masked_fill(gaps.unsqueeze(1), least)
            sizes = sizes.masked_fill(gaps, 0)
        logs = logits.log_softmax(dim=2)
        means = logs.exp() @ rows.float()
        if beyond is not None:
            logs = logs.masked_fill(beyond.unsqueeze(2), least)
        left = (logs.softmax(dim=1) @ sizes.unsqueeze(2)).squeeze(2).clamp(min=_LEAST_SIZE)
    return means.to(rows.dtype), left
