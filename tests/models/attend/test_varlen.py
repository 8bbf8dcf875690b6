"""Ragged attention in one call: what it is given, when it is taken, and that it gives what the runs give."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import models.attend.varlen
from models.attend.runs import Runs
from models.attend.varlen import Varlen, takes_varlen
from models.pruned_vit import PrunedViT
from models.ragged import Packing, Tokens
from models.schedule import Pruning
from tests.models.batches import batches
from tests.models.varlen_reference import Reference, take_varlen
from tests.support.examples import examples

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]

# Eight values a head, the least that the kernel takes.
HEADS_OF_8 = {"embed_dim": 48, "life": 1}


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Reference:
    """The reference in the place of PyTorch's kernel, taken whatever the device."""
    reference = Reference()
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", reference.varlen_attn)
    return reference


# timm's switches that change what attention is of: norms of queries and keys, and of the output, and a gate.
VARIANTS: list[dict[str, Any]] = [
    {},
    {"reg_tokens": 2, "qk_norm": True, "scale_attn_norm": True},
    {"class_token": False, "reg_tokens": 1, "global_pool": "avg", "qkv_bias": False},
]


@pytest.mark.parametrize("signature", ["varlen_attn", "of_2_10"])
@pytest.mark.parametrize("arguments", VARIANTS, ids=["CLS", "norms", "all rows"])
@settings(max_examples=examples(6))
@given(prunings=batches(by_mass=False))
def test_one_call_gives_what_the_runs_give(
    make_vit: MakeViT,
    make_pixels: MakePixels,
    arguments: dict[str, Any],
    signature: str,
    prunings: list[Pruning],
) -> None:
    """Whatever the lengths, of queries as of keys, the logits and the kept patches are those of attention
    run by run."""
    model = PrunedViT(make_vit(pool=True, **HEADS_OF_8, **arguments))
    pixels = make_pixels(len(prunings))
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        runs = model(pixels, prunings)
        patch.setattr("torch.nn.attention.varlen.varlen_attn", getattr(Reference(), signature))
        take_varlen(patch)
        once = model(pixels, prunings)
    # The temperature of `transform`, 0.001, multiplies the rounding of similarities by a thousand: 5e-5 was
    # seen. In float64 it is as exact as the others (next test).
    for pruning, own, wanted in zip(prunings, once.logits, runs.logits, strict=True):
        atol = 5e-4 if pruning.reducer == "transform" else 2e-5
        torch.testing.assert_close(own, wanted, rtol=0, atol=atol)
    for own, wanted in zip(once.kept, runs.kept, strict=True):
        assert [image.tolist() for image in own] == [image.tolist() for image in wanted]


@pytest.mark.parametrize("keep_ratio", [0.3125, 0.5, 0.7])
def test_transformed_images_are_alike_in_float64(
    make_vit: MakeViT, make_pixels: MakePixels, keep_ratio: float
) -> None:
    """What differs in float32 is rounding."""
    model = PrunedViT(make_vit(**HEADS_OF_8)).double()
    pixels, prunings = make_pixels(2).double(), [Pruning(keep_ratio, reducer="transform"), Pruning()]
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        runs = model(pixels, prunings)
        patch.setattr("torch.nn.attention.varlen.varlen_attn", Reference().varlen_attn)
        take_varlen(patch)
        once = model(pixels, prunings)
    torch.testing.assert_close(once.logits, runs.logits, rtol=0, atol=1e-10)


def test_each_ragged_block_is_one_call(
    make_vit: MakeViT, make_pixels: MakePixels, monkeypatch: pytest.MonkeyPatch, reference: Reference
) -> None:
    """Blocks of the network before the first stage are dense; from there on each is one call, a stage's with
    fewer queries than keys."""
    take_varlen(monkeypatch)
    with torch.inference_mode():
        PrunedViT(make_vit(**HEADS_OF_8))(make_pixels(3), [Pruning(ratio) for ratio in (0.6, 1.0, 0.2)])
    # Sorted by falling ratio; 35 patches and CLS, as test_ragged has them.
    assert reference.calls == [
        ([36, 22, 8], [36, 36, 36]),
        ([36, 14, 3], [36, 22, 8]),
        ([36, 9, 2], [36, 14, 3]),
        ([36, 9, 2], [36, 9, 2]),
    ]


def test_dense_batches_keep_their_path(
    make_vit: MakeViT, make_pixels: MakePixels, monkeypatch: pytest.MonkeyPatch, reference: Reference
) -> None:
    """Images of one length stay with the dense kernel."""
    take_varlen(monkeypatch)
    with torch.inference_mode():
        PrunedViT(make_vit(**HEADS_OF_8))(make_pixels(3), [Pruning(0.6)] * 3)
    assert reference.calls == []


@pytest.mark.parametrize(("width", "taken"), [(248, True), (256, False)])
def test_a_bias_by_size_needs_room_in_the_heads(
    make_vit: MakeViT, reference: Reference, width: int, taken: bool
) -> None:
    """It is carried by eight more values a head, of which the kernel takes 256 at most; else the runs are."""
    attn = make_vit(embed_dim=6 * width, depth=1).blocks[0].attn
    rows = torch.randn(8, 3 * 6 * width)
    tokens = Tokens(
        rows, Packing((5, 3)), (5, 3), torch.zeros(8, dtype=torch.int64), bounds=torch.tensor([0, 5, 8]).int()
    )
    weighted = replace(tokens, bias=torch.randn(8))
    with torch.no_grad():
        for some, calls in ((tokens, 1), (weighted, int(taken))):
            reference.calls.clear()
            Varlen(Runs(fused=True)).attend(attn, (rows,), some, some, 0)
            assert len(reference.calls) == calls


@pytest.mark.parametrize(
    ("change", "has_it"),
    [
        ({}, True),
        ({"torch.nn.attention.varlen": None}, False),  # before PyTorch 2.10
        ({"hip": "6.4"}, False),
        ({"flash": False}, False),
        ({"capability": (7, 5)}, False),
    ],
    ids=str,
)
def test_where_the_kernel_is(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], has_it: bool) -> None:
    """PyTorch has its module, whatever the version is called; the GPU's capability is asked of that GPU."""
    if "torch.nn.attention.varlen" in change:
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    monkeypatch.setattr(torch, "__version__", "2.10.0")
    monkeypatch.setattr(torch.version, "hip", change.get("hip"))
    monkeypatch.setattr(
        torch.backends.cuda, "is_flash_attention_available", lambda: change.get("flash", True)
    )
    wanted, capability = torch.device("cuda:1"), change.get("capability", (8, 0))
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: capability if device == wanted else (0, 0)
    )
    assert _unchecked(models.attend.varlen.built_for)(wanted) == has_it


class Rows:
    """What is asked of rows before the kernel is chosen."""

    def __init__(self, dtype: torch.dtype, *, is_cuda: bool = True) -> None:
        self.dtype, self.is_cuda, self.device = dtype, is_cuda, torch.device("cuda:0")


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"dtype": torch.float16}, True),
        ({"dtype": torch.float32}, False),
        ({"is_cuda": False}, False),
        ({"built": False}, False),
        ({"embed_dim": 66}, False),  # 11 values a head
        ({"embed_dim": 6 * 256}, True),
        ({"embed_dim": 6 * 264}, False),
        ({"grad": True}, False),
        ({"training": True}, False),
        ({"fused": False}, False),
    ],
    ids=str,
)
def test_the_kernel_is_taken_where_it_can_be(
    make_vit: MakeViT, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], taken: bool
) -> None:
    """Half precision on a GPU in inference, with heads of a multiple of eight values up to 256; each of these
    is enough to refuse it."""
    monkeypatch.setattr(models.attend.varlen, "built_for", lambda _device: change.get("built", True))
    attn = make_vit(embed_dim=change.get("embed_dim", 48), depth=1).blocks[0].attn
    attn.train(change.get("training", False))
    attn.fused_attn = change.get("fused", True)
    rows: Any = Rows(change.get("dtype", torch.bfloat16), is_cuda=change.get("is_cuda", True))
    with torch.set_grad_enabled(change.get("grad", False)):
        # Rows stand in for a tensor on a GPU, which the check of types would not have.
        assert _unchecked(takes_varlen)(attn, rows) == taken


def _unchecked(function: Callable[..., Any]) -> Callable[..., Any]:
    return getattr(function, "__wrapped__", function)
