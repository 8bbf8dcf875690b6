"""Which way attention is computed, once for a forward pass."""

from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import models.attend.choice
from models.attend import way_for
from models.attend.runs import Runs
from models.attend.varlen import Varlen
from models.attend.windows import Windows
from models.blocks import Blocks
from models.families import family_of

MakeViT = Callable[..., VisionTransformer]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_is_timms_kernel(
    make_vit: MakeViT, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, fused: bool
) -> None:
    """In any dtype and on any device: fused where timm fuses."""
    monkeypatch.setattr(models.attend.choice, "takes_varlen", lambda _attn, _rows: True)
    family = family_of(make_vit(depth=1))
    family.blocks[0].attn.fused_attn = fused
    rows = torch.zeros(1, dtype=dtype)
    with torch.inference_mode():
        assert Blocks.of(family, rows, exact=True).way == Runs(fused)
        assert (
            Blocks.of(family, rows, exact=False).way
            == way_for(family.blocks[0].attn, rows, family.architecture.tokens)
            != Runs(fused)
        )


@pytest.mark.parametrize("fused", [False, True])
def test_on_a_cpu(make_vit: MakeViT, monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    """Windows in bfloat16, fused where that is faster, but for training, which takes the plain form there;
    runs in float32."""
    monkeypatch.setattr(models.attend.choice, "fused_is_faster", lambda: fused)
    attn = make_vit(depth=1).blocks[0].attn
    half = torch.zeros(1, dtype=torch.bfloat16)
    assert way_for(attn, half, 17) == Runs(fused=False)
    with torch.inference_mode():
        assert way_for(attn, half, 17) == Windows(unpruned=17, fused=fused)
        assert way_for(attn, half.float(), 17) == Runs(fused=True)
        attn.fused_attn = False
        assert way_for(attn, half.float(), 17) == Runs(fused=False)


def test_in_training_autocast_decides(make_vit: MakeViT) -> None:
    """There the rows are float32, and what is computed of them is not."""
    attn, rows = make_vit(depth=1).blocks[0].attn, torch.zeros(1)
    assert way_for(attn, rows, 17) == Runs(fused=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert way_for(attn, rows, 17) == Runs(fused=False)


def test_one_call_where_the_kernel_is(make_vit: MakeViT, monkeypatch: pytest.MonkeyPatch) -> None:
    """And runs, where images are alike or it cannot be."""
    attn, rows = make_vit(depth=1).blocks[0].attn, torch.zeros(1)
    monkeypatch.setattr(models.attend.choice, "takes_varlen", lambda _attn, _rows: True)
    assert way_for(attn, rows, 17) == Varlen(Runs(fused=True))
