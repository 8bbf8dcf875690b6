"""What becomes of the patches that are not kept, beside dropping them: pure tensor functions.

`fuse` is EViT's (arXiv 2202.07800, section 3.3), with weights that sum to 1. `merge` is ToMe's bipartite
soft matching (arXiv 2210.09461, section 3): pairs that are alike become their mean, weighted by how many
patches each already stands for.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def fuse(
    patches: Float[Tensor, "B N D"], attention: Float[Tensor, "B N"], kept: Int[Tensor, "B count"]
) -> Float[Tensor, "B 1 D"]:
    """One token of all patches that are not ``kept``: their mean, weighted by the attention they receive."""
    weights = attention.scatter(1, kept, 0.0)
    # Attention may underflow to 0 on all that is left; the plain mean stands in.
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, torch.ones_like(weights))
    weights = weights.scatter(1, kept, 0.0)
    weights = weights / weights.sum(1, keepdim=True)
    return weights.unsqueeze(1).to(patches.dtype) @ patches


def merge(
    patches: Float[Tensor, "B N D"],
    keys: Float[Tensor, "B N K"],
    sizes: Float[Tensor, "B N"],
    count: int,
) -> tuple[Float[Tensor, "B count D"], Float[Tensor, "B count"], Int[Tensor, "B count"]]:
    """Merge the most similar pairs until ``count`` patches are left, 1 <= count <= N.

    Gives the merged patches, how many original patches each stands for, and its position: that of the
    partner it was merged into. Patches stay in their order. A round can at most halve their number, so
    fewer than half take several.
    """
    positions = torch.arange(patches.shape[1], device=patches.device).expand(len(patches), -1)
    metric = keys.float()
    while patches.shape[1] > count:
        pairs = min(patches.shape[1] - count, patches.shape[1] // 2)
        target, left = _match(metric, pairs)
        merged_sizes = _summed(sizes.unsqueeze(2), target)
        patches = _mean(patches, sizes, merged_sizes, target, left)
        metric = _mean(metric, sizes, merged_sizes, target, left)
        sizes = merged_sizes.squeeze(2).gather(1, left)
        positions = positions.gather(1, left)
    return patches, sizes, positions


@torch.no_grad()
def _match(metric: Float[Tensor, "B N K"], pairs: int) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B left"]]:
    """For every patch the one it goes into (itself, or its partner), and which ones are left, ascending.

    Odd places look for their most similar even one, and the ``pairs`` best matches are made.
    """
    images, patches, _ = metric.shape
    unit = F.normalize(metric, dim=2)
    similarity, partner = (unit[:, 1::2] @ unit[:, ::2].transpose(1, 2)).max(dim=2)
    best = similarity.argsort(dim=1, descending=True, stable=True)[:, :pairs]
    target = torch.arange(patches, device=metric.device).repeat(images, 1)
    target.scatter_(1, 2 * best + 1, 2 * partner.gather(1, best))
    gone = torch.zeros_like(target).scatter(1, 2 * best + 1, 1)
    # A stable sort moves those that are gone to the end and leaves the others in their order.
    left = gone.argsort(dim=1, stable=True)[:, : patches - pairs]
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
    """The mean by size of what goes into each place that is left; in float32, and given back as it came."""
    summed = _summed(values.float() * sizes.unsqueeze(2), target)
    index = left.unsqueeze(2)
    mean = summed.gather(1, index.expand(-1, -1, values.shape[2])) / merged_sizes.gather(1, index)
    return mean.to(values.dtype)
