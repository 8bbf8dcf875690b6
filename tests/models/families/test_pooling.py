"""Images of different lengths pooled in one table: each as the network pools it alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from models.families.pooling import pool

MakeViT = Callable[..., VisionTransformer]

PREFIX, LENGTHS = 3, (11, 4, 7)

KINDS: dict[str, dict[str, Any]] = {
    "avg": {"global_pool": "avg"},
    "avg with prefix": {"global_pool": "avg", "pool_include_prefix": True},
    "max": {"global_pool": "max"},
    "avgmax": {"global_pool": "avgmax"},
    "map": {"global_pool": "map"},
    "prr": {"global_pool": "prr"},
    "prr of patches": {"global_pool": "prr", "class_token": False, "reg_tokens": 3},
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_gaps_are_not_seen(make_vit: MakeViT, kind: str, fused: bool) -> None:
    """Whatever stands in them, each image is pooled as alone."""
    vit = make_vit(**{"reg_tokens": 2, **KINDS[kind]})
    if vit.attn_pool is not None:
        vit.attn_pool.fused_attn = fused
    first = 0 if vit.pool_include_prefix else PREFIX
    table = torch.randn(3, max(LENGTHS), 66, generator=torch.Generator().manual_seed(0))
    gaps = torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS)[:, None]
    table[gaps] = 1e3
    with torch.inference_mode():
        together = pool(vit, first, table, gaps, None)
        for image, length in enumerate(LENGTHS):
            alone = vit.pool(table[image : image + 1, :length])
            torch.testing.assert_close(together[image], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["avg", "avgmax"])
def test_averages_count_tokens_by_what_they_stand_for(make_vit: MakeViT, kind: str) -> None:
    """A token of size 3 is averaged as three of it; a maximum and the prefix do not change."""
    vit = make_vit(reg_tokens=2, global_pool=kind)
    table = torch.randn(1, 7, 66, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[1.0, 1.0, 1.0, 1.0, 3.0, 1.0, 2.0]])
    repeated = table[:, [0, 1, 2, 3, 4, 4, 4, 5, 6, 6]]
    padded = torch.cat((table, torch.full((1, 2, 66), 9.0)), dim=1)
    gaps = torch.tensor([[False] * 7 + [True] * 2])
    with torch.inference_mode():
        wanted = vit.pool(repeated)
        torch.testing.assert_close(pool(vit, PREFIX, table, None, sizes), wanted)
        weighted = pool(vit, PREFIX, padded, gaps, torch.nn.functional.pad(sizes, (0, 2), value=5.0))
        torch.testing.assert_close(weighted, wanted)
