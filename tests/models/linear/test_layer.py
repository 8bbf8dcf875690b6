"""Layers of one protocol: they take the place of PyTorch's and do the same."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models.linear.layer import replace_linears
from models.linear.plain import PlainLinear


@pytest.mark.parametrize("bias", [True, False])
def test_a_plain_layer_has_the_parameters_themselves(bias: bool) -> None:
    """Same names, same tensors, same mode; what is trained in one is trained in the other."""
    linear = nn.Linear(7, 5, bias=bias).eval()
    layer = PlainLinear(linear)
    assert dict(layer.named_parameters()).keys() == dict(linear.named_parameters()).keys()
    assert all(one is other for one, other in zip(layer.parameters(), linear.parameters(), strict=True))
    assert (layer.in_features, layer.out_features, layer.training) == (7, 5, False)


@pytest.mark.parametrize("bias", [True, False])
def test_a_plain_layer_computes_as_pytorch_does(bias: bool) -> None:
    """All outputs and GELU of them to the bit, a part as a layer of these outputs."""
    torch.manual_seed(0)
    linear = nn.Linear(7, 5, bias=bias)
    layer, x = PlainLinear(linear), torch.randn(2, 3, 7)
    assert torch.equal(layer(x), linear(x))
    for approximate in ("none", "tanh"):
        assert torch.equal(layer.with_gelu(x, approximate), F.gelu(linear(x), approximate=approximate))
    part = slice(2, 5)
    own_bias = None if linear.bias is None else linear.bias[part]
    assert torch.equal(layer.part(x, part), F.linear(x, linear.weight[part], own_bias))


def test_every_layer_is_replaced_under_its_name(make_vit: Callable[..., VisionTransformer]) -> None:
    """Whichever subclass it is; each is told of its own parts alone. The state is the same."""
    vit = make_vit()
    before = vit.state_dict()
    told = {}

    def make(linear: nn.Linear, parts: object) -> PlainLinear:
        told[linear.weight.data_ptr()] = parts
        return PlainLinear(linear)

    replace_linears(vit.blocks, PlainLinear)
    replace_linears(vit.blocks, make, {"3.attn.qkv": (slice(0, 66),)})
    layers = [module for module in vit.blocks.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 4 * len(vit.blocks)
    assert all(type(layer) is PlainLinear for layer in layers)
    qkv = vit.blocks[3].attn.qkv.weight.data_ptr()
    assert told.pop(qkv) == (slice(0, 66),)
    assert set(told.values()) == {()}
    after = vit.state_dict()
    assert after.keys() == before.keys()
    assert all(after[name].data_ptr() == before[name].data_ptr() for name in before)
