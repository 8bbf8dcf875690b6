"""Attention over windows of a ragged batch: what it is for each image alone, in few shapes."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import models.attend.choice
import models.attend.windows
from models.attend.windows import KEY_STEP, QUERY_STEP, Windows, fused_is_faster, takes_windows
from models.pruned_vit import PrunedViT
from models.ragged import Packing, Tokens, rounded
from models.schedule import Pruning

HEADS, WIDTH = 3, 8
# Tokens of an unpruned image.
UNPRUNED = 37

images = st.lists(
    st.integers(1, 3 * QUERY_STEP).flatmap(lambda length: st.tuples(st.integers(1, length), st.just(length))),
    min_size=1,
    max_size=5,
)


def rows(packing: Packing, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    count = sum(packing.lengths) + packing.padding
    return torch.randn((count, HEADS, WIDTH), generator=generator).bfloat16()


def in_few(lengths: tuple[int, ...]) -> Packing:
    return Packing(lengths, rounded(sum(lengths)))


def attended(
    attn: Attention,
    parts: tuple[Tensor, ...],
    packing: Packing,
    source: Packing,
    bias: Tensor | None = None,
    *,
    fused: bool,
) -> Tensor:
    """By windows, of tokens of which nothing else is asked."""
    ids = torch.zeros(0, dtype=torch.int64)
    tokens, of_source = (Tokens(parts[0], one, one.lengths, ids, bias=bias) for one in (packing, source))
    return Windows(UNPRUNED, fused).attend(attn, parts, tokens, of_source, 0)


@pytest.mark.parametrize("fused", [False, True])
@given(images=images, seed=st.integers(0, 9), weighted=st.booleans())
@example(images=[(1, 1)], seed=0, weighted=False)  # fewer rows than a window
@example(
    images=[(17, 17), (32, 32), (5, 5)], seed=1, weighted=True
)  # queries, keys and values of the same rows
@example(images=[(20, 20)] * 11, seed=0, weighted=True)  # groups of eight, two and one
@example(images=[(UNPRUNED, UNPRUNED)] * 2, seed=2, weighted=True)  # windows without zeros
@example(images=[(33, 47), (17, 33)], seed=3, weighted=True)  # some without zeros, in a stage
def test_each_image_attends_to_itself(
    fused: bool, images: list[tuple[int, int]], seed: int, weighted: bool
) -> None:
    """As softmax(q k / sqrt(d) + bias) v in float64 of each image by itself, and with the same bits as in a
    batch of its own; rows behind the images are 0."""
    kept, lengths = zip(*images, strict=True)
    packing, source = in_few(kept), in_few(lengths)
    attn = Attention(HEADS * WIDTH, HEADS).eval()
    q, k, v = rows(packing, seed), rows(source, seed + 1), rows(source, seed + 2)
    bias = rows(source, seed + 3)[: sum(lengths), 0, 0] if weighted else None
    with torch.inference_mode():
        kv = torch.cat((k, v), dim=1).flatten(1)
        mixed = attended(attn, (q.flatten(1), kv), packing, source, bias, fused=fused)
        three = (q.flatten(1), k.flatten(1), v.flatten(1))
        assert attended(attn, three, packing, source, bias, fused=fused).equal(mixed)
        if packing == source:
            together = torch.cat((q.flatten(1), kv), dim=1)
            assert attended(attn, (together,), packing, packing, bias, fused=fused).equal(mixed)
        for image in range(len(images)):
            own = slice(packing.starts[image], packing.starts[image] + kept[image])
            keys = slice(source.starts[image], source.starts[image] + lengths[image])
            own_bias = None if bias is None else bias[keys]
            logits = torch.einsum("qhd,khd->hqk", q[own].double(), k[keys].double()) * WIDTH**-0.5
            logits += 0 if own_bias is None else own_bias.double()
            wanted = torch.einsum("hqk,khd->qhd", logits.softmax(dim=-1), v[keys].double())
            # Rounded to bfloat16 are the logits, twice with a bias, each weight, and the answer.
            roundings = (2 * logits.abs().max() + 2) * 2**-9
            atol = roundings * v[keys].abs().max().double()
            torch.testing.assert_close(mixed[own].double(), wanted.flatten(1), atol=atol.item(), rtol=0.0)
            one, its_source = Packing(kept[image : image + 1]), Packing(lengths[image : image + 1])
            alone = attended(attn, (q[own].flatten(1), kv[keys]), one, its_source, own_bias, fused=fused)
            assert alone.flatten(0, 1).equal(mixed[own])
    assert not mixed[sum(kept) :].any()


@given(unpruned=st.integers(1, 600), tokens=st.integers(1, 600))
@example(unpruned=257, tokens=129)
@example(unpruned=197, tokens=197)
def test_windows_hold_the_tokens_in_few_sizes(unpruned: int, tokens: int) -> None:
    """A size is a multiple of its step, or one more, or that of an unpruned image; zeros are fewer than a
    step."""
    windows = Windows(unpruned)
    for size, step in ((windows.query_size(tokens), QUERY_STEP), (windows.key_size(tokens), KEY_STEP)):
        assert tokens <= size < tokens + step
        assert size % step in (0, 1) or size == tokens == unpruned


def test_common_lengths_have_windows_without_zeros() -> None:
    """Of 16 x 16 patches and one CLS token: all, a half, a quarter and an eighth of the patches. Of 14 x 14:
    all of them, whose last 5 keys cost less than 27 more."""
    for tokens in (257, 129, 65, 33):
        assert Windows(257).query_size(tokens) == Windows(257).key_size(tokens) == tokens
    assert (Windows(197).query_size(197), Windows(197).key_size(197)) == (197, 197)
    assert (Windows(187).query_size(187), Windows(187).key_size(187)) == (187, 192)


class Shapes(TorchDispatchMode):
    """Collects the shapes of all operands of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[Any, ...]] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket is torch.ops.aten.scaled_dot_product_attention:
            # Its products are one for each image and head, however many there are.
            self.seen.add((str(func), *(tuple(a.shape[1:]) for a in args[:3])))
        if func.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.baddbmm, torch.ops.aten.addmm):
            self.seen.add((str(func), *(tuple(a.shape) for a in args if isinstance(a, Tensor))))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fused", [False, True])
def test_any_batch_has_few_shapes(
    make_vit: Callable[..., VisionTransformer],
    make_pixels: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
    fused: bool,
) -> None:
    """After 30 batches of random ratios in bfloat16, 30 more bring hardly a new shape."""
    monkeypatch.setattr(models.attend.choice, "fused_is_faster", lambda: fused)
    model = PrunedViT(make_vit().bfloat16().eval())
    pixels = make_pixels(4).bfloat16()
    draw = random.Random(0)
    with torch.inference_mode(), Shapes() as shapes:
        for batch in range(60):
            model(pixels, [Pruning(draw.uniform(0.2, 1)) for _ in range(4)])
            if batch == 29:
                known = len(shapes.seen)
    assert fused == any("scaled_dot_product_attention" in name for name, *_ in shapes.seen)
    assert len(shapes.seen) <= known * 1.1, sorted(shapes.seen)


def test_where_windows_are_taken() -> None:
    """In bfloat16 in inference; float32 has other kernels, and training needs what autograd saves."""
    half = torch.zeros(1, dtype=torch.bfloat16)
    assert not takes_windows(half)
    with torch.inference_mode():
        assert takes_windows(half)
        assert not takes_windows(half.float())
        assert not takes_windows(torch.zeros(1, dtype=torch.bfloat16, device="meta"))


@pytest.mark.parametrize("amx", [False, True])
def test_attention_is_fused_on_a_cpu_with_amx(monkeypatch: pytest.MonkeyPatch, amx: bool) -> None:
    """Others have no fast product of bfloat16 for it."""
    monkeypatch.setattr(models.attend.windows, "cpu_has_amx", lambda: amx)
    assert fused_is_faster() == amx
