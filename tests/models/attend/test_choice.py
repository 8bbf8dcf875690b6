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

MakeViT = Callable[..., VisionTransformer]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_is_timms_kernel(make_vit: MakeViT, dtype: torch.dtype, fused: bool) -> None:
    """In any dtype: fused where timm fuses."""
    attn = make_vit(depth=1).blocks[0].attn
    attn.fused_attn = fused
    with torch.inference_mode():
        assert way_for(attn, torch.zeros(1, dtype=dtype), exact=True) == Runs(fused)


def test_on_a_cpu(make_vit: MakeViT) -> None:
    """Windows in bfloat16, but for training, which takes the plain form there; runs in float32."""
    attn = make_vit(depth=1).blocks[0].attn
    half = torch.zeros(1, dtype=torch.bfloat16)
    assert way_for(attn, half, exact=False) == Runs(fused=False)
    with torch.inference_mode():
        assert way_for(attn, half, exact=False) == Windows()
        assert way_for(attn, half.float(), exact=False) == Runs(fused=True)
        attn.fused_attn = False
        assert way_for(attn, half.float(), exact=False) == Runs(fused=False)


def test_one_call_where_the_kernel_is(make_vit: MakeViT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the bits are to be timm's."""
    attn, rows = make_vit(depth=1).blocks[0].attn, torch.zeros(1)
    monkeypatch.setattr(models.attend.choice, "takes_varlen", lambda _attn, _rows: True)
    assert way_for(attn, rows, exact=False) == Varlen(Runs(fused=True))
    assert way_for(attn, rows, exact=True) == Runs(fused=True)
