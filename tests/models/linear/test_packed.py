"""Packed linear layers give the bits of the plain ones."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.classifier import Classifier, normalise
from models.linear.packed import PackedLinear, PackedPatches, can_pack, packs_patches
from models.pruned_vit import PrunedViT
from models.schedule import UNPRUNED, Pruning
from models.transforms import InputSpec

needs_bfloat16 = pytest.mark.skipif(
    not can_pack(torch.bfloat16), reason="this CPU does not compute in bfloat16"
)
SPEC = InputSpec((20, 28), (0.5, 0.5, 0.5), (0.3, 0.3, 0.3), "bicubic", "center", 1.0)


def linear(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias).bfloat16()


@needs_bfloat16
@pytest.mark.parametrize("bias", [True, False])
@given(
    rows=st.integers(1, 300), inputs=st.sampled_from([3, 66, 384]), outputs=st.sampled_from([5, 198, 1152])
)
def test_a_packed_layer_gives_the_same_bits(bias: bool, rows: int, inputs: int, outputs: int) -> None:
    """For whatever shape, with and without bias, whole or in part, in two dimensions or three."""
    plain = linear(inputs, outputs, bias=bias)
    part = slice(outputs // 3, outputs)
    packed = PackedLinear(plain, [part])
    with torch.inference_mode():
        x = torch.randn(rows, inputs).bfloat16()
        assert torch.equal(packed(x), plain(x))
        assert torch.equal(packed(x[None]), plain(x[None]))
        torch.testing.assert_close(packed.part(x, part), plain(x)[:, part])


@needs_bfloat16
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_patches_are_embedded_as_by_the_convolution(bias: bool, memory_format: torch.memory_format) -> None:
    """Whatever the layout of the pixels, also where some are left over at the right and at the bottom."""
    torch.manual_seed(0)
    embed = PatchEmbed(img_size=(18, 28), patch_size=(6, 4), embed_dim=8, bias=bias).bfloat16()
    pixels = torch.randn(3, 3, 20, 28).bfloat16().contiguous(memory_format=memory_format)
    assert packs_patches(embed)
    with torch.inference_mode():
        given = PackedPatches(embed.proj)(pixels)
        wanted = embed.proj(pixels).flatten(2).transpose(1, 2)
        torch.testing.assert_close(given, wanted, rtol=2**-7, atol=2**-7)
    embed.proj.stride = (3, 3)
    assert not packs_patches(embed)


def test_only_bfloat16_is_packed() -> None:
    """In float32 the plain layer is left alone."""
    assert not can_pack(torch.float32)
    assert not can_pack(torch.float16)


@needs_bfloat16
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_follows_the_product(approximate: str) -> None:
    """As one operation after the other, but for one rounding; in each form of GELU that there is."""
    packed = PackedLinear(linear(384, 1536, bias=True))
    with torch.inference_mode():
        x = torch.randn(33, 384).bfloat16()
        wanted = F.gelu(F.linear(x.double(), *double(linear(384, 1536, bias=True))), approximate=approximate)
        torch.testing.assert_close(packed.with_gelu(x, approximate).double(), wanted, rtol=2**-8, atol=2**-9)


def double(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    return layer.weight.detach().double(), layer.bias.detach().double()


@needs_bfloat16
def test_a_classifier_packs_and_stays_timms_to_the_last_bit(
    make_vit: Callable[..., VisionTransformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At ratio 1 its exact logits are still the bits of timm's in bfloat16, and pruned they are as unpacked,
    where GELU rounds as there."""
    vit = make_vit().bfloat16()
    plain = PrunedViT(copy.deepcopy(vit))
    classifier = Classifier(PrunedViT(vit), SPEC, "cpu", torch.bfloat16)
    assert not any(type(child) is nn.Linear for child in classifier.model.vit.blocks.modules())
    images = torch.randint(0, 256, (4, 20, 28, 3), dtype=torch.uint8)
    inputs = normalise(images, SPEC, torch.bfloat16)
    with torch.inference_mode():
        classifier.model.exact = True
        assert torch.equal(classifier.model(inputs, [UNPRUNED] * 4).logits, plain.vit(inputs))
        classifier.model.exact = False
        prunings = [Pruning(0.5), Pruning(0.7, "mad", "fuse"), Pruning(0.5, reducer="merge"), UNPRUNED]
        served = classifier.model(inputs, prunings)
        monkeypatch.setattr(
            PackedLinear, "with_gelu", lambda self, x, approximate: F.gelu(self(x), approximate=approximate)
        )
        packed, unpacked = classifier.model(inputs, prunings), plain(inputs, prunings)
        torch.testing.assert_close(served.logits, unpacked.logits, rtol=0, atol=0.25)
        torch.testing.assert_close(packed.logits, unpacked.logits, rtol=0, atol=0.25)
        for stage_packed, stage_plain in zip(packed.kept, unpacked.kept, strict=True):
            assert [kept.tolist() for kept in stage_packed] == [kept.tolist() for kept in stage_plain]
