"""The table of docs/timm-models.md is what timm's registry comes to, and what it says is served is."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from docs import timm_models
from models.load import ModelError
from models.load.timm_models import create_timm
from models.pruned_vit import PrunedViT, check_against_timm
from models.schedule import UNPRUNED, Pruning
from tests.models.conftest import randomise_

DEPTH = 5


def test_the_table_is_up_to_date() -> None:
    """Written anew it is the same; otherwise run: python docs/timm_models.py"""
    page = timm_models.PAGE.read_text(encoding="utf-8")
    _, _, rest = page.partition(timm_models.BEGIN)
    found, _, _ = rest.partition(timm_models.END)
    version = found.split(":")[0].strip().removeprefix("timm ")
    if version != timm.__version__:
        pytest.skip(f"the table is of timm {version}")
    assert found.strip() == timm_models.table()


def shape_of(vit: nn.Module) -> tuple[object, ...]:
    """What a forward pass could go wrong by: which parts there are, not how large they are."""
    block = vit.blocks[0]
    return (
        type(vit).__name__,
        type(block).__name__,
        *(type(module).__name__ for module in block.modules()),
        type(vit.norm).__name__,
        type(vit.fc_norm).__name__,
        type(vit.norm_pre).__name__,
        type(vit.attn_pool).__name__,
        vit.global_pool,
        vit.cls_token is None,
        getattr(vit, "reg_token", None) is None,
        vit.pos_embed is None,
        vit.no_embed_class,
        getattr(block.attn.qkv, "bias", None) is None,
    )


def one_of_each_shape() -> dict[str, str]:
    """An architecture that the table says is served or needs a head, of each shape."""
    found: dict[tuple[object, ...], str] = {}
    for module in timm_models.MODULES:
        for name in timm.list_models(module=module, pretrained=True):
            stem = name.partition(".")[0]
            if stem in found.values() or timm_models.refusal(stem) is not None:
                continue
            try:
                with torch.device("meta"):
                    vit = create_timm(stem, pretrained=False, depth=2)
            except ModelError:  # its arguments say something of each block, so it cannot be made small
                continue
            found.setdefault(shape_of(vit), stem)
    return {stem: stem for stem in found.values()}


def small(stem: str) -> dict[str, Any]:
    """Arguments for a small network of the shape."""
    with torch.device("meta"):
        vit = create_timm(stem, pretrained=False, depth=2)
    patch = vit.patch_embed.patch_size[0]
    return {
        "img_size": 4 * patch,
        "depth": DEPTH,
        "embed_dim": 8 * vit.blocks[0].attn.num_heads,
        "num_classes": 7,
    }


@pytest.mark.long
def test_one_network_of_each_shape_is_pruned_as_timm_computes_it() -> None:
    """With random weights: unpruned equal to timm to the last bit, together as alone."""
    shapes = one_of_each_shape()
    assert len(shapes) > 8
    make: Callable[..., Tensor] = torch.randn
    for stem in shapes:
        arguments = small(stem)
        vit = create_timm(stem, pretrained=False, **arguments)
        model = PrunedViT(randomise_(vit).eval())
        size = arguments["img_size"]
        pixels = make(3, 3, size, size, generator=torch.Generator().manual_seed(1))
        check_against_timm(model, pixels)
        prunings = [Pruning(0.5), UNPRUNED, Pruning(0.7)]
        with torch.inference_mode():
            together = model(pixels, prunings).logits
            for image, pruning in enumerate(prunings):
                alone = model(pixels[image : image + 1], [pruning]).logits[0]
                torch.testing.assert_close(together[image], alone, rtol=1e-3, atol=1e-3, msg=stem)
