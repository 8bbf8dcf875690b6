"""A patch stride below the kernel: which patches it cuts, where they stand, and what follows from it."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from timm.layers.patch_embed import PatchEmbedWithSize
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.families import UnsupportedModelError, family_of
from models.patch_embed import patch_grid, set_image_size, set_patch_stride
from models.pruned_vit import PrunedViT, check_against_timm
from models.schedule import CRITERIA, UNPRUNED, Pruning, macs

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]

# Every way in which timm lays out a position embedding: what comes before the patches in the tokens, and
# how many of its entries are not of patches.
LAYOUTS: dict[str, tuple[dict[str, Any], int, int]] = {
    "CLS": ({}, 1, 1),
    "distilled": ({"cls": VisionTransformerDistilled}, 2, 2),
    "registers": ({"reg_tokens": 4}, 5, 5),
    "registers without positions": ({"reg_tokens": 4, "no_embed_class": True}, 5, 0),
    "CLS without position": ({"no_embed_class": True}, 1, 0),
    "no prefix": ({"class_token": False, "global_pool": "avg"}, 0, 0),
}


# The image size.


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_image_size_is_timms(layout: str, make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """The position embedding is resampled as timm does it; the network is pruned as one built for it."""
    arguments, _, _ = LAYOUTS[layout]
    vit, timms = make_vit(**arguments), make_vit(**arguments)
    set_image_size(vit, (28, 16))
    timms.set_input_size(img_size=(28, 16))
    pixels = make_pixels(2, size=(28, 16))
    with torch.inference_mode():
        assert torch.equal(vit(pixels), timms(pixels))
    model = PrunedViT(vit)
    assert model.arch.grid == (7, 4)
    check_against_timm(model, pixels)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_image_size_keeps_the_stride(layout: str, make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """Of overlapping patches, in either order."""
    arguments, _, _ = LAYOUTS[layout]
    vit, before = make_vit(**arguments), make_vit(**arguments)
    set_patch_stride(vit, 3)
    grid = vit.patch_embed.grid_size
    set_image_size(vit, (28, 16))
    assert vit.patch_embed.grid_size == (9, 5)
    check_against_timm(PrunedViT(vit), make_pixels(2, size=(28, 16)))
    set_image_size(vit, (20, 28))
    assert vit.patch_embed.grid_size == grid
    set_image_size(before, (20, 28))
    assert before.patch_embed.grid_size == (5, 7)


@pytest.mark.parametrize(("size", "near"), [((21, 28), 20), ((20, 30), 32)])
def test_a_size_that_cuts_a_patch_is_refused(make_vit: MakeViT, size: tuple[int, int], near: int) -> None:
    with pytest.raises(ValueError, match=f"not a multiple of 4; the nearest is {near}"):
        set_image_size(make_vit(), size)


def test_a_size_below_a_patch_is_refused(make_vit: MakeViT) -> None:
    """Also where patches overlap, and none need fit a whole number of times."""
    vit = make_vit()
    set_patch_stride(vit, 3)
    for one in (vit, make_vit()):
        with pytest.raises(ValueError, match="3 x 28 pixels is smaller than a patch, which has 4 x 4"):
            set_image_size(one, (3, 28))


# The patches.


@pytest.mark.parametrize(
    ("patch_size", "stride", "grid"),
    [((4, 4), 3, (6, 9)), ((4, 4), 1, (17, 25)), ((5, 7), 2, (8, 11)), ((5, 7), 5, (4, 5))],
)
def test_tokens_are_those_of_patches_cut_by_hand(
    make_vit: MakeViT,
    make_pixels: MakePixels,
    patch_size: tuple[int, int],
    stride: int,
    grid: tuple[int, int],
) -> None:
    """Patch (row, column) begins `stride` pixels after the one before and has the trained kernel's size."""
    vit = make_vit(patch_size=patch_size)
    weight, bias = vit.patch_embed.proj.weight.clone(), vit.patch_embed.proj.bias.clone()
    set_patch_stride(vit, stride)
    pixels = make_pixels(2)
    tokens = vit.patch_embed(pixels)
    assert tokens.shape == (2, grid[0] * grid[1], 66)
    for row in range(grid[0]):
        for column in range(grid[1]):
            top, left = row * stride, column * stride
            cut = pixels[:, :, top : top + patch_size[0], left : left + patch_size[1]]
            want = torch.einsum("bchw,dchw->bd", cut, weight) + bias
            torch.testing.assert_close(tokens[:, row * grid[1] + column], want, rtol=1e-4, atol=1e-5)


@given(
    kernel=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    strides=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_the_grid_is_the_convolutions(
    kernel: tuple[int, int], strides: tuple[int, int], size: tuple[int, int]
) -> None:
    """Rows and columns are what a convolution of that kernel and stride gives, for any image it fits into."""
    assume(size[0] >= kernel[0] and size[1] >= kernel[1])
    convolved = F.conv2d(torch.zeros(1, 1, *size), torch.zeros(1, 1, *kernel), stride=strides)
    assert patch_grid(size, kernel, strides) == tuple(convolved.shape[2:])


def test_the_strides_own_side_changes_nothing(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """A stride equal to the kernel leaves the very same parameters, and every bit of the answer."""
    vit, pixels = make_vit(), make_pixels(2)
    parameters, before = dict(vit.named_parameters()), vit(pixels)
    set_patch_stride(vit, 4)
    assert all(parameter is parameters[name] for name, parameter in vit.named_parameters())
    assert vit.patch_embed.grid_size == (5, 7)
    assert torch.equal(vit(pixels), before)


def test_all_weights_but_the_positions_are_kept(make_vit: MakeViT) -> None:
    """Kernel, bias and everything behind them stay the trained ones."""
    vit = make_vit()
    before = copy.deepcopy(vit.state_dict())
    set_patch_stride(vit, 3)
    after = vit.state_dict()
    assert after.keys() == before.keys()
    for name in before.keys() - {"pos_embed"}:
        assert torch.equal(after[name], before[name]), name


# The positions.


@pytest.mark.parametrize("layout", LAYOUTS)
def test_positions_are_resampled_and_those_of_prefix_tokens_kept(make_vit: MakeViT, layout: str) -> None:
    """Positions are stretched over the new grid; CLS, distillation and register tokens keep their own."""
    arguments, prefix_tokens, prefix_positions = LAYOUTS[layout]
    vit = make_vit(**arguments)
    before = vit.pos_embed.detach().clone()
    set_patch_stride(vit, 3)
    after = vit.pos_embed.detach()
    assert vit.num_prefix_tokens == prefix_tokens
    assert after.shape == (1, prefix_positions + 6 * 9, 66)
    assert torch.equal(after[:, :prefix_positions], before[:, :prefix_positions])
    grid = before[0, prefix_positions:].T.reshape(1, 66, 5, 7)
    want = F.interpolate(grid, (6, 9), mode="bicubic", antialias=True)[0].flatten(1).T
    torch.testing.assert_close(after[0, prefix_positions:], want)


def test_positions_keep_their_rows_and_columns(make_vit: MakeViT) -> None:
    """Positions that are their own row and column rise along the new rows and columns, from end to end."""
    vit = make_vit(no_embed_class=True)
    rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    vit.pos_embed.data[0, :, 0], vit.pos_embed.data[0, :, 1] = rows.flatten(), columns.flatten()
    set_patch_stride(vit, 2)
    positions = vit.pos_embed.detach().view(9, 13, 66)
    assert positions[:, 5, 0].tolist() == pytest.approx([4 * row / 8 for row in range(9)], abs=0.3)
    assert positions[5, :, 1].tolist() == pytest.approx([6 * column / 12 for column in range(13)], abs=0.3)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_stay_a_parameter_of_their_kind(
    make_vit: MakeViT, trained: bool, dtype: torch.dtype
) -> None:
    """They are trained if they were before, and keep their dtype."""
    vit = make_vit().to(dtype)
    vit.pos_embed.requires_grad_(trained)
    set_patch_stride(vit, 3)
    assert dict(vit.named_parameters())["pos_embed"].requires_grad == trained
    assert vit.pos_embed.dtype == dtype


def test_without_positions_there_is_nothing_to_resample(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """A model without position embedding takes a stride all the same."""
    vit = make_vit(pos_embed="none")
    set_patch_stride(vit, 3)
    check_against_timm(PrunedViT(vit), make_pixels(2))


def test_a_stride_can_be_changed_again(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """From one stride to another, and back to plain patches."""
    vit = make_vit()
    set_patch_stride(vit, 2)
    between = vit.pos_embed.detach().clone()
    set_patch_stride(vit, 3)
    want = F.interpolate(between[0, 1:].T.reshape(1, 66, 9, 13), (6, 9), mode="bicubic", antialias=True)
    torch.testing.assert_close(vit.pos_embed[0, 1:], want[0].flatten(1).T)
    set_patch_stride(vit, 4)
    assert vit.patch_embed.grid_size == (5, 7)
    check_against_timm(PrunedViT(vit), make_pixels(2))


# What follows from it.


def test_timms_own_feature_maps_have_the_new_grid(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """timm's forward_intermediates, which asks the patch embedding for the grid, works with a stride."""
    vit = make_vit()
    set_patch_stride(vit, 3)
    for model in (vit, copy.deepcopy(vit)):
        features, maps = model.forward_intermediates(make_pixels(2), indices=2)
        assert features.shape == (2, 1 + 54, 66)
        assert [tuple(each.shape) for each in maps] == [(2, 66, 6, 9)] * 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_in_a_mixed_batch_are_as_each_alone(
    make_vit: MakeViT, make_pixels: MakePixels, layout: str
) -> None:
    """Company in the batch changes no kept patch of an image, and its logits by roundings only."""
    vit = make_vit(life=1, **LAYOUTS[layout][0])
    set_patch_stride(vit, 3)
    model, pixels = PrunedViT(vit), make_pixels(len(CRITERIA))
    ratios = (0.3, 1.0, 0.75, 0.5, 0.3, 0.05)
    prunings = [Pruning(ratios[place % 6], criterion) for place, criterion in enumerate(CRITERIA)]
    with torch.inference_mode():
        mixed = model(pixels, prunings)
        for image, pruning in enumerate(prunings):
            alone = model(pixels[image : image + 1], [pruning])
            for together, single in zip(mixed.kept, alone.kept, strict=True):
                assert torch.equal(together[image], single[0])
            torch.testing.assert_close(mixed.logits[image], alone.logits[0], rtol=0, atol=2e-5)
    assert [len(kept) for kept in mixed.kept[0]] == [17, 54, 41, 27, 17, 3, 17, 54, 41, 27, 17, 3]


@pytest.mark.parametrize(
    ("stride", "patches", "gmacs"), [(16, 196, 4.60), (14, 225, 5.34), (12, 324, 7.97), (10, 441, 11.32)]
)
def test_what_deit_small_costs_with_a_stride(stride: int, patches: int, gmacs: float) -> None:
    """DeiT-S at 224 px has so many patches and unpruned multiply-accumulates."""
    vit = timm.create_model("deit_small_patch16_224", device="meta")
    set_patch_stride(vit, stride)
    model = PrunedViT(vit)
    assert model.arch.patches == vit.patch_embed.num_patches == patches
    assert round(macs(model.arch, model.stages, (patches,) * 3) / 1e9, 2) == gmacs


def test_macs_are_the_multiplications_that_run(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """PyTorch's own counter sees the MACs that are said to run with overlapping patches."""
    vit = make_vit()
    set_patch_stride(vit, 3)
    for block in vit.blocks:
        block.attn.fused_attn = False  # the counter knows matrix products
    model = PrunedViT(vit)
    assert model.arch == family_of(vit).architecture
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(make_pixels(2), [UNPRUNED] * 2)
    assert counter.get_total_flops() == 2 * 2 * macs(model.arch, model.stages, (54, 54, 54))


# What is refused.


@pytest.mark.parametrize(
    ("patch_size", "stride", "most"), [((4, 4), 5, 4), ((4, 4), 0, 4), ((4, 4), -1, 4), ((5, 7), 6, 5)]
)
def test_a_stride_out_of_range_is_refused(
    make_vit: MakeViT, patch_size: tuple[int, int], stride: int, most: int
) -> None:
    """Below 1, or beyond the kernel's shorter side, where pixels are left out; and nothing is changed."""
    vit = make_vit(patch_size=patch_size)
    before = vit.patch_embed.grid_size
    words = (
        f"a patch stride of {stride} is out of range: the patches have {patch_size[0]} x {patch_size[1]} "
        f"pixels, which allows 1 to {most}"
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        set_patch_stride(vit, stride)
    assert vit.patch_embed.proj.stride == patch_size
    assert vit.patch_embed.grid_size == before


def with_size(*, dynamic_img_pad: bool, **arguments: Any) -> PatchEmbedWithSize:
    """A subclass of timm's PatchEmbed, which may do anything in its forward pass."""
    return PatchEmbedWithSize(**arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "found"),
    [
        (
            "vit_base_r50_s16_224",
            {},
            "its patch embedding is HybridEmbed, but only timm's PatchEmbed supports",
        ),
        ("vit_tiny_patch16_224", {"embed_layer": with_size}, "patch embedding is PatchEmbedWithSize"),
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}, "grid depends on the image"),
        ("vit_tiny_patch16_224", {"dynamic_img_pad": True}, "grid depends on the image"),
    ],
)
def test_other_patch_embeddings_are_refused(name: str, arguments: dict[str, Any], found: str) -> None:
    """What is not one plain convolution over images of one size takes no stride, and is named."""
    vit = timm.create_model(name, device="meta", depth=2, **arguments)
    with pytest.raises(UnsupportedModelError, match=re.escape(found)):
        set_patch_stride(vit, 12)
