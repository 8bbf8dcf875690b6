"""Pooling of images side by side in one table, with gaps if they differ in length."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers import AttentionPoolLatent, AttentionPoolPrr
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.families.cls_and_patches import ClsAndPatches


def averages(network: VisionTransformer | Eva) -> bool:
    """Whether the head either averages patches or does not read any."""
    if network.attn_pool is not None:
        return isinstance(network.attn_pool, ClsAndPatches)
    return network.global_pool in ("token", "avg")


def pool(
    network: VisionTransformer | Eva,
    first: int,
    table: Float[Tensor, "B T D"],
    gaps: Bool[Tensor, "B T"] | None,
    sizes: Float[Tensor, "B T"] | None,
) -> Float[Tensor, "B features"]:
    """Compute the network's own ``pool`` for each image without its gaps.

    ``first``: the index of the first token that the pooling reads. Averages over tokens are weighted by
    ``sizes``, the number of patches that each token represents.
    """
    kind, module = network.global_pool, network.attn_pool
    averages = isinstance(module, ClsAndPatches) or (module is None and kind in ("avg", "avgmax"))
    if gaps is None and not (averages and sizes is not None):
        return _pooled(network, table)
    if isinstance(module, ClsAndPatches):
        prefix = module.prefix_tokens
        patches = _weighted(table, prefix, gaps, sizes)[:, prefix:].mean(dim=1)
        return torch.cat([table[:, 0], patches], dim=-1)
    if module is None and kind == "avg":
        return _pooled(network, _weighted(table, first, gaps, sizes))
    if module is None and kind == "avgmax":
        highest = _without(table, gaps, -torch.inf)[:, first:].amax(dim=1)
        return 0.5 * (highest + _weighted(table, first, gaps, sizes)[:, first:].mean(dim=1))
    assert gaps is not None
    if module is None:
        assert kind == "max"
        return _pooled(network, _without(table, gaps, -torch.inf))
    seen = torch.zeros_like(gaps, dtype=table.dtype).masked_fill(gaps, -torch.inf)[:, first:]
    if isinstance(module, AttentionPoolLatent):
        latent: Tensor = module(table[:, first:], attn_mask=seen[:, None, None])
        return latent
    assert isinstance(module, AttentionPoolPrr)
    return _refined(module, table[:, first:], seen)


def _pooled(network: VisionTransformer | Eva, table: Tensor) -> Float[Tensor, "B features"]:
    pooled: Tensor = network.pool(table)
    return pooled


def _weighted(table: Tensor, first: int, gaps: Tensor | None, sizes: Tensor | None) -> Tensor:
    """Scale the table so that its plain mean from ``first`` on is the mean of the existing tokens, weighted
    by size."""
    if sizes is None:
        assert gaps is not None
        sizes = torch.ones_like(gaps, dtype=torch.float32)
    sizes = _without(sizes.unsqueeze(2), gaps, 0.0)
    weights = sizes / sizes[:, first:].mean(dim=1, keepdim=True)
    return (table * weights).to(table.dtype)


def _without(table: Float[Tensor, "B T D"], gaps: Tensor | None, value: float) -> Float[Tensor, "B T D"]:
    return table if gaps is None else table.masked_fill(gaps.unsqueeze(2), value)


def _refined(
    module: AttentionPoolPrr, table: Float[Tensor, "B T D"], seen: Float[Tensor, "B T"]
) -> Float[Tensor, "B D"]:
    """The module's own forward, with gaps masked."""
    rows = module.pre_norm(table)
    split = rows.unflatten(2, (module.num_heads, module.head_dim)).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(split, split, split, attn_mask=seen[:, None, None])
    rows = module.post_norm(mixed.transpose(1, 2).flatten(2))
    if module.pool == "token":
        return rows[:, 0]
    there = (seen == 0).to(rows.dtype).unsqueeze(2)
    return (rows * there).sum(dim=1) / there.sum(dim=1)
