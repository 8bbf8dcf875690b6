"""The pruned network: timm's own at keep ratio 1, and a slow and obvious one at every other."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import Attention, Mlp, RmsNorm
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.families import SUPPORTED, UnsupportedModelError, family_of
from models.patch_embed import set_patch_stride
from models.pruned_vit import PrunedViT, check_against_timm
from models.schedule import (
    CRITERIA,
    REDUCERS,
    UNPRUNED,
    Architecture,
    Criterion,
    Pruning,
    Reducer,
    Rows,
    Stages,
    default_stages,
    every_block,
    keep_counts,
    macs,
)
from tests.models.reference import reference, reference_logits
from tests.models.served import TOLERANCE, difference_from_timm

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]
Randomise = Callable[..., nn.Module]

# timm's own definitions, made small: 3 x 5 patches, 4 blocks, 6 heads of 11 values.
TIMM_NAMES = {
    "ViT": "vit_small_patch16_224",
    "ViT without embedded CLS": "flexivit_small",
    "DeiT": "deit_small_patch16_224",
    "distilled DeiT": "deit_small_distilled_patch16_224",
    "DeiT III": "deit3_small_patch16_224",
    "DINOv2": "vit_small_patch14_dinov2",
    "DINOv2 with registers": "vit_small_patch14_reg4_dinov2",
    "DINOv2 giant (SwiGLU)": "vit_giant_patch14_dinov2",
    "CLIP": "vit_base_patch16_clip_224",
    "CLIP with quick GELU": "vit_base_patch16_clip_quickgelu_224",
    "average pooling with CLS": "eva_large_patch14_196",
    "average pooling without CLS": "vit_base_patch16_siglip_gap_224",
    "average pooling with registers": "vit_base_patch16_reg4_gap_256",
    "map pooling": "vit_base_patch16_siglip_224",
    "map pooling with registers": "vit_so150m_patch16_reg4_map_256",
    "BEiT-3 (norms inside)": "beit3_base_patch16_224",
    "RADIO (many registers)": "vit_base_patch16_radio_v3",
    "AIMv2 (RMS norm, SwiGLU)": "aimv2_large_patch14_224",
}


def gated(vit: VisionTransformer) -> VisionTransformer:
    """The same ViT with gates on its attention, which timm's Attention has but its ViT cannot ask for."""
    for block in vit.blocks:
        block.attn = Attention(66, 6, qkv_bias=True, gated=True)
    return vit


# What no name of timm's asks for, by arguments.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "query and key norm": {"qk_norm": True},
    "norms everywhere": {
        "scale_attn_norm": True,
        "scale_mlp_norm": True,
        "qk_norm": True,
    },
    "RMS norm": {"norm_layer": RmsNorm},
    "maximum pooling": {"global_pool": "max"},
    "maximum and average pooling": {"global_pool": "avgmax", "reg_tokens": 2},
    "average with prefix": {"global_pool": "avg", "pool_include_prefix": True, "fc_norm": False},
    "residual pooling": {"global_pool": "prr"},
    "map pooling with CLS": {"global_pool": "map"},
    "no position embedding": {"pos_embed": "none"},
    "no final norm": {"final_norm": False},
    "no biases": {"qkv_bias": False, "proj_bias": False},
}


@pytest.fixture(params=[*TIMM_NAMES, *ARGUMENTS, "gated attention"])
def family(request: pytest.FixtureRequest, make_vit: MakeViT, randomise: Randomise) -> VisionTransformer:
    if request.param == "gated attention":
        return randomise(gated(make_vit())).eval()
    if request.param in ARGUMENTS:
        return make_vit(**ARGUMENTS[request.param])
    name = TIMM_NAMES[request.param]
    patch = 14 if "patch14" in name else 16
    changes: dict[str, Any] = {
        "img_size": (3 * patch, 5 * patch),
        "depth": 4,
        "embed_dim": 66,
        "num_heads": 6,
    }
    if "aimv2" in name:
        changes["embed_dim"] = 72  # its MLP is 2.75 times as wide, which is to be even
    vit = timm.create_model(name, num_classes=13, **changes)
    return randomise(vit).eval()


def images_for(vit: VisionTransformer, make_pixels: MakePixels, images: int) -> Tensor:
    return make_pixels(images, size=vit.patch_embed.img_size)


# Ratio 1.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ratio_1_is_timm_to_the_last_bit(
    family: VisionTransformer, make_pixels: MakePixels, dtype: torch.dtype
) -> None:
    """For every family, at keep ratio 1 the exact logits are timm's own, bit for bit, and every patch is
    kept."""
    vit = family.to(dtype)
    pixels = images_for(vit, make_pixels, 2).to(dtype)
    model = PrunedViT(vit)
    model.exact = True
    with torch.inference_mode():
        output = model(pixels, [UNPRUNED] * 2)
        assert torch.equal(output.logits, vit(pixels))
    assert output.logits.std() > 0.1
    arch = family_of(vit).architecture
    assert [[kept.tolist() for kept in stage] for stage in output.kept] == [
        [list(range(arch.patches))] * 2
    ] * 3


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_what_is_served_at_ratio_1_is_near_timm(
    family: VisionTransformer, make_pixels: MakePixels, dtype: torch.dtype
) -> None:
    """For every family, within the tolerance that is published for the dtype."""
    assert difference_from_timm(family, images_for(family, make_pixels, 3), dtype) <= TOLERANCE[dtype]


def test_check_against_timm_accepts_every_family(family: VisionTransformer, make_pixels: MakePixels) -> None:
    """What is bit for bit timm's passes the check that a server makes when it loads a model."""
    check_against_timm(PrunedViT(family), images_for(family, make_pixels, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ratio_1_is_timm_with_overlapping_patches(
    family: VisionTransformer, make_pixels: MakePixels, dtype: torch.dtype
) -> None:
    """For every family, a patch stride below the kernel leaves ratio 1 timm's own, bit for bit."""
    kernel = family.patch_embed.proj.kernel_size
    before = family_of(family).architecture
    set_patch_stride(family, kernel[0] * 2 // 3)
    model = PrunedViT(family.to(dtype))
    assert model.arch.patches > 1.8 * before.patches
    assert (model.arch.prefix_tokens, model.arch.patch_inputs) == (before.prefix_tokens, before.patch_inputs)
    check_against_timm(model, images_for(family, make_pixels, 2).to(dtype))


def test_every_parameter_matters(family: VisionTransformer, make_pixels: MakePixels) -> None:
    """The random parameters are such that a forward pass which forgot one would not pass for timm's."""
    pixels = images_for(family, make_pixels, 2)
    PrunedViT(family)(pixels, [UNPRUNED] * 2).logits.square().sum().backward()
    for name, parameter in family.named_parameters():
        assert parameter.grad is not None, name
        # A key's bias shifts all logits of a query alike, which softmax does not see.
        assert parameter.grad.abs().max() > 1e-7, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ratio_1_without_fused_attention(
    make_vit: MakeViT, make_pixels: MakePixels, dtype: torch.dtype
) -> None:
    """Where timm is told not to fuse attention, ratio 1 is still timm's to the last bit."""
    vit = make_vit().to(dtype)
    for block in vit.blocks:
        block.attn.fused_attn = False
    check_against_timm(PrunedViT(vit), make_pixels(3).to(dtype))


def test_without_stages_nothing_is_pruned(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """A model without stages runs at any ratio as unpruned."""
    vit = make_vit()
    pixels = make_pixels(2)
    with torch.inference_mode():
        output = PrunedViT(vit, Stages(()))(pixels, [Pruning(0.3), Pruning(0.7)])
        torch.testing.assert_close(output.logits, vit(pixels), rtol=1e-4, atol=1e-5)
    assert len(output.kept) == 0


# Pruned, against a slow and obvious network (reference.py).


def kept_lists(kept: Sequence[Sequence[Tensor]], image: int) -> list[list[int]]:
    return [stage[image].tolist() for stage in kept]


@pytest.mark.parametrize("heads", [5, 6])
@pytest.mark.parametrize("rows", ["cls", "all"])
@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_kept_patches_and_logits_agree_with_a_slow_reference(
    make_vit: MakeViT,
    make_pixels: MakePixels,
    criterion: Criterion,
    reducer: Reducer,
    rows: Rows,
    heads: int,
) -> None:
    """Every criterion and reducer, on either row, with odd and even heads, keeps what its definition says."""
    vit = make_vit(num_heads=heads, embed_dim=11 * heads, life=1, pool=True)
    stages = default_stages(5, rows)
    pixels = make_pixels(3)
    prunings = [Pruning(0.6, criterion, reducer, seed=image) for image in range(3)]
    with torch.inference_mode():
        output = PrunedViT(vit, stages)(pixels, prunings)
        for image, pruning in enumerate(prunings):
            logits, kept = reference(vit, stages, pixels[image], pruning)
            assert kept_lists(output.kept, image) == kept
            assert [len(stage) for stage in kept] == [21, 13, 8]
            np.testing.assert_allclose(output.logits[image], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("prefix", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}])
def test_a_few_patches_in_every_block_agree_with_a_slow_reference(
    make_vit: MakeViT, make_pixels: MakePixels, reducer: Reducer, prefix: dict[str, Any]
) -> None:
    """ToMe's schedule, for every reducer: in a mixed batch each image loses evenly, as it does alone."""
    vit, pixels = make_vit(pool=True, **prefix), make_pixels(4)
    model = PrunedViT(vit, every_block(5, "all" if "global_pool" in prefix else "cls"))
    prunings = [Pruning(ratio, reducer=reducer) for ratio in (0.8, 0.95, 1.0, 0.6)]
    with torch.inference_mode():
        output = model(pixels, prunings)
        for image, pruning in enumerate(prunings):
            logits, kept = reference(vit, model.stages, pixels[image], pruning)
            assert kept_lists(output.kept, image) == kept
            np.testing.assert_allclose(output.logits[image], logits, rtol=1e-4, atol=2e-4)
    assert output.kept.counts.T.tolist() == [
        [31, 26, 22, 17, 12],
        [34, 33, 31, 30, 28],
        [35] * 5,
        [29, 23, 16, 10, 3],
    ]


def test_mass_is_refused_where_patches_are_lost_evenly(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """With the reason, whoever asks."""
    with pytest.raises(ValueError, match="all stages of this model remove the same number"):
        PrunedViT(make_vit(), every_block(5))(make_pixels(1), [Pruning(keep_mass=0.5)])


@pytest.mark.parametrize("rows", ["cls", "all"])
@pytest.mark.parametrize("reducer", REDUCERS)
def test_gradients_agree_with_a_slow_reference(
    make_vit: MakeViT, make_pixels: MakePixels, reducer: Reducer, rows: Rows
) -> None:
    """Also through the weights that patches are fused, pooled and transformed by: attention learns what to
    fuse. Rounding of cosines, of which thousandths matter, shows in those that are transformed."""
    vit, stages = make_vit(pool=True), default_stages(5, rows)
    pixels = make_pixels(2).requires_grad_()
    prunings = [Pruning(0.6, reducer=reducer), Pruning(0.4, "mad", reducer)]
    towards = torch.linspace(-1, 1, 13)
    logits = PrunedViT(vit, stages)(pixels, prunings).logits
    (got,) = torch.autograd.grad((logits * towards).sum(), pixels)
    for image, pruning in enumerate(prunings):
        alone = pixels[image].detach().double().requires_grad_()
        wanted, _ = reference_logits(vit, stages, alone, pruning)
        (gradient,) = torch.autograd.grad((wanted * towards).sum(), alone)
        atol = 5e-4 if reducer == "transform" else 1e-4
        torch.testing.assert_close(got[image].double(), gradient, rtol=1e-3, atol=atol)


def test_every_family_agrees_with_the_slow_reference(
    family: VisionTransformer, make_pixels: MakePixels, give_pools: Callable[..., None]
) -> None:
    """The pruned network is right for every family, each image with its own ratio and criterion."""
    pixels = images_for(family, make_pixels, 6)
    give_pools(family)
    model = PrunedViT(family)
    prunings = [
        Pruning(0.5),
        Pruning(0.8, "mad"),
        Pruning(0.65, "mean_value_norm", "fuse"),
        Pruning(0.4, reducer="merge"),
        Pruning(0.6, reducer="pool"),
        Pruning(0.6, "iqr", "transform"),
    ]
    with torch.inference_mode():
        output = model(pixels, prunings)
        for image, pruning in enumerate(prunings):
            logits, kept = reference(family, model.stages, pixels[image], pruning)
            assert kept_lists(output.kept, image) == kept
            np.testing.assert_allclose(output.logits[image], logits, rtol=1e-4, atol=2e-4)


def test_a_fused_token_counts_in_the_average_for_all_that_it_stands_for(
    make_vit: MakeViT, make_pixels: MakePixels
) -> None:
    """Where all patches are alike behind the last block, fusing most of them leaves the average as it was:
    it hangs on the tokens' weights alone, of which those of an image add up to its patches."""
    vit = make_vit(class_token=False, global_pool="avg")
    model, pixels = PrunedViT(vit), make_pixels(2)
    seen: list[Tensor] = []
    vit.norm.register_forward_hook(
        lambda _module, _args, rows: rows * 0 + torch.arange(rows.shape[-2])[:, None]
    )
    vit.fc_norm.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.inference_mode():
        model(pixels, [Pruning(0.5, reducer="fuse")] * 2)
    # 35 patches: 18, 9 and 5 stay; then come tokens of the 17, 9 and 4 others. Row n holds n.
    wanted = (0 + 1 + 2 + 3 + 4 + 5 * 17 + 6 * 9 + 7 * 4) / 35
    torch.testing.assert_close(seen[0], torch.full((2, 66), wanted))


def test_keep_mass_without_importance_keeps_everything(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """One head agrees with itself, so no patch has any spread over heads and none is known to matter less;
    an image of the same batch that has importance is not touched by it."""
    vit = make_vit(num_heads=1)
    prunings = [Pruning(keep_mass=0.5, criterion="variance"), Pruning(keep_mass=0.5, criterion="mean")]
    kept = PrunedViT(vit)(make_pixels(2), prunings).kept
    assert kept.counts[:, 0].tolist() == [35, 35, 35]
    assert 1 < kept.counts[0, 1] < 35


def test_criteria_choose_differently(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """The criteria are different ones: over ten images no two keep the same patches."""
    pixels = make_pixels(10).repeat(len(CRITERIA), 1, 1, 1)
    prunings = [Pruning(0.4, criterion) for criterion in CRITERIA for _ in range(10)]
    kept = [kept.tolist() for kept in PrunedViT(make_vit(life=1))(pixels, prunings).kept[0]]
    of_each = {str(kept[10 * place : 10 * place + 10]) for place in range(len(CRITERIA))}
    assert len(of_each) == len(CRITERIA)


@pytest.mark.parametrize("keep_ratio", [1e-6, 1 / 35, 0.1, 0.5, 0.99])
def test_kept_patches_are_ascending_and_nested(
    make_vit: MakeViT, make_pixels: MakePixels, keep_ratio: float
) -> None:
    """Kept patches stay in their order in the image, and a stage keeps only what the one before left."""
    output = PrunedViT(make_vit())(make_pixels(2), [Pruning(keep_ratio)] * 2)
    for image in range(2):
        before = list(range(35))
        for stage, count in zip(kept_lists(output.kept, image), keep_counts(35, keep_ratio, 3), strict=True):
            assert len(stage) == count
            assert stage == sorted(set(stage) & set(before))
            before = stage


def test_seed_belongs_to_the_random_criterion(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """Another seed keeps other patches under `random`, and changes nothing under `variance`."""
    model, pixels = PrunedViT(make_vit()), make_pixels(1).expand(2, -1, -1, -1)
    drawn = model(pixels, [Pruning(0.5, "random", seed=seed) for seed in (1, 2)])
    assert kept_lists(drawn.kept, 0) != kept_lists(drawn.kept, 1)
    spread = model(pixels, [Pruning(0.5, "variance", seed=seed) for seed in (1, 2)])
    assert kept_lists(spread.kept, 0) == kept_lists(spread.kept, 1)


def rows_entering(model: PrunedViT, block: int, part: str = "norm2") -> tuple[list[Tensor], Any]:
    """What enters a part of a block, collected by a hook; and the hook's handle."""
    seen: list[Tensor] = []
    module = getattr(model.vit.blocks[block], part)
    return seen, module.register_forward_hook(lambda _module, args, _result: seen.append(args[0]))


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [("plain", 1), ("distilled", 2), ("registers", 5), ("registers without CLS", 4), ("none", 0)],
)
def test_prefix_tokens_are_never_pruned(
    make_vit: MakeViT, make_pixels: MakePixels, kind: str, prefix: int
) -> None:
    """CLS, distillation and register tokens reach the last block in their places, however few patches do."""
    vit = {
        "plain": lambda: make_vit(),
        "distilled": lambda: make_vit(VisionTransformerDistilled),
        "registers": lambda: make_vit(reg_tokens=4),
        "registers without CLS": lambda: make_vit(reg_tokens=4, class_token=False, global_pool="avg"),
        "none": lambda: make_vit(class_token=False, global_pool="avg"),
    }[kind]()
    model = PrunedViT(vit)
    assert model.arch.prefix_tokens == prefix
    assert model.stages.rows == ("all" if vit.cls_token is None else "cls")
    before, first = rows_entering(model, 1, "norm1")
    after, second = rows_entering(model, 1)
    last, third = rows_entering(model, 4)
    # Nothing but the choice of rows happens between a stage's attention and its MLP.
    model.vit.blocks[1].attn.proj.weight.data.zero_()
    if model.vit.blocks[1].attn.proj.bias is not None:
        model.vit.blocks[1].attn.proj.bias.data.zero_()
    output = model(make_pixels(2), [Pruning(0.01)] * 2)
    for handle in (first, second, third):
        handle.remove()
    assert before[0].shape == (2, 35 + prefix, 66)
    assert after[0].shape == last[0].shape == (2, 1 + prefix, 66)
    assert torch.equal(after[0][:, :prefix], before[0][:, :prefix])
    for image in range(2):
        patch = prefix + output.kept[0][image].item()
        assert torch.equal(after[0][image, prefix], before[0][image, patch])


def test_stages_may_lie_anywhere(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """A single stage in the last block is right, and so are stages in all blocks."""
    vit, pixels = make_vit(), make_pixels(1)
    for blocks in ((4,), (0, 1, 2, 3, 4)):
        stages = Stages(blocks)
        with torch.inference_mode():
            output = PrunedViT(vit, stages)(pixels, [Pruning(0.7)])
            logits, kept = reference(vit, stages, pixels[0], Pruning(0.7))
        assert kept_lists(output.kept, 0) == kept
        np.testing.assert_allclose(output.logits[0], logits, rtol=1e-4, atol=1e-4)


def test_as_many_prunings_as_images(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """A pruning too few is an error, not an image left out."""
    with pytest.raises(ValueError, match="3 images, but 2 prunings"):
        PrunedViT(make_vit())(make_pixels(3), [UNPRUNED] * 2)


# The numbers that costs follow from.


def test_architecture_of_a_distilled_model(make_vit: MakeViT) -> None:
    """Both heads of a distilled model count as classes."""
    arch = family_of(make_vit(VisionTransformerDistilled)).architecture
    assert arch == Architecture(
        depth=5, dim=66, mlp_dim=99, grid=(5, 7), prefix_tokens=2, patch_inputs=48, classes=26
    )


def test_architecture_of_deit_small_is_what_its_macs_were_published_for() -> None:
    """timm's DeiT-S has 4.6 GMACs by its own modules' sizes."""
    vit = timm.create_model("deit_small_patch16_224", device="meta")
    model = PrunedViT(vit)
    assert round(macs(model.arch, model.stages, (196, 196, 196)) / 1e9, 1) == 4.6


COUNTED = [name for name in TIMM_NAMES if "map" not in name]


@pytest.mark.parametrize("family", COUNTED, indirect=True)
@pytest.mark.parametrize("keep_ratio", [1.0, 0.6])
def test_macs_are_the_multiplications_that_run(
    family: VisionTransformer, make_pixels: MakePixels, keep_ratio: float
) -> None:
    """PyTorch's own counter sees the MACs that are said to run; but at a stage that drops patches, one more
    q_cls K^T product (and query), and for the dropped ones neither query, attention nor projection."""
    for block in family.blocks:
        block.attn.fused_attn = False  # the counter knows matrix products
    model = PrunedViT(family)
    arch, stages = model.arch, model.stages
    counts = keep_counts(arch.patches, keep_ratio, len(stages.blocks))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(images_for(family, make_pixels, 2), [Pruning(keep_ratio)] * 2)
    criterion = saved = 0
    if keep_ratio < 1:
        for left, count in zip((arch.patches, *counts), counts, strict=False):
            tokens = left + arch.prefix_tokens
            criterion += arch.dim * tokens * (1 if stages.rows == "cls" else tokens)
            criterion += arch.dim**2 if stages.rows == "cls" else 0
            matrices = 2 if stages.rows == "cls" else 1  # the mean over all queries needs all of them
            saved += (left - count) * (matrices * arch.dim**2 + 2 * tokens * arch.dim)
    assert counter.get_total_flops() == 2 * 2 * (macs(arch, stages, counts) + criterion - saved)


# What is refused.


class LocalMlp(Mlp):
    """Might mix neighboring patches."""


def unsupported() -> list[Any]:
    tiny = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3}
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("swin_tiny_patch4_window7_224", {}, "its class is SwinTransformer"),
        ("resnet18", {}, "its class is ResNet"),
        ("vit_base_patch16_rpn_224", tiny, "blocks of class ResPostBlock"),
        ("vit_base_patch16_xp_224", tiny, "blocks of class ParallelScalingBlock"),
        ("vit_base_patch16_18x2_224", tiny, "blocks of class ParallelThingsBlock"),
        ("vit_dwee_patch16_reg1_gap_256", tiny, "attention of class DiffAttention"),
        ("vit_base_r50_s16_224", {}, "its patch embedding is HybridEmbed"),
        ("test_vit", {}, "dynamic_img_size"),
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}, "images of any size (dynamic_img_size)"),
        ("vit_tiny_patch16_224", {"patch_drop_rate": 0.1}, "drops random patches"),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": ""}, "an output per token"),
        ("vit_tiny_patch16_224", {"mlp_layer": LocalMlp}, "MLPs of class LocalMlp"),
        ("vit_tiny_patch16_224", {"block_fn": ResPostBlock}, "blocks of class ResPostBlock"),
        ("vit_tiny_patch16_224", {"block_fn": ParallelScalingBlock}, "blocks of class ParallelScalingBlock"),
    ]
    return [pytest.param(*case, id=f"{case[0]}-{case[2]}") for case in cases]


@pytest.mark.parametrize(("name", "arguments", "found"), unsupported())
def test_what_cannot_be_pruned_is_refused(name: str, arguments: dict[str, Any], found: str) -> None:
    """A part that TrimViT does not know is refused by name, and the message says what is supported."""
    vit = timm.create_model(name, device="meta", **arguments)
    with pytest.raises(UnsupportedModelError) as caught:
        PrunedViT(vit)
    assert found in str(caught.value)
    assert f"Supported: {SUPPORTED}." in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_subclass_is_refused(make_vit: MakeViT) -> None:
    """A subclass may do anything in its forward pass."""

    class Reversed(VisionTransformer):
        pass

    with pytest.raises(UnsupportedModelError, match="its class is Reversed"):
        PrunedViT(make_vit(Reversed))


def test_one_odd_block_is_enough(make_vit: MakeViT) -> None:
    """Every block is looked at, not the first one alone."""
    vit = make_vit()
    vit.blocks[3] = ResPostBlock(66, 6)
    with pytest.raises(UnsupportedModelError, match="ResPostBlock"):
        PrunedViT(vit)


def test_mixed_attention_kernels_are_refused(make_vit: MakeViT) -> None:
    """Fused attention in some blocks only is no model of timm's."""
    vit = make_vit()
    vit.blocks[2].attn.fused_attn = not vit.blocks[2].attn.fused_attn
    with pytest.raises(UnsupportedModelError, match="different attention kernels"):
        PrunedViT(vit)


def test_cls_row_needs_a_cls_token(make_vit: MakeViT) -> None:
    """Stages that read the CLS row are refused for a model without CLS, registers or not."""
    for registers in (0, 3):
        vit = make_vit(class_token=False, global_pool="avg", reg_tokens=registers)
        with pytest.raises(UnsupportedModelError, match=r"no CLS token \(use rows='all'\)"):
            PrunedViT(vit, Stages((1, 2), "cls"))


def test_a_stage_beyond_the_last_block_is_refused(make_vit: MakeViT) -> None:
    """Stages are checked against the model's depth before anything runs."""
    with pytest.raises(ValueError, match="stage in block 6, but the model has 5 blocks"):
        PrunedViT(make_vit(), Stages((5,)))


def test_check_against_timm_refuses_a_changed_forward(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """A block whose forward someone changed is found out, however right its class."""
    vit = make_vit()
    model = PrunedViT(vit)
    vit.blocks[3].register_forward_hook(lambda _module, _args, result: result * 1.001)
    with pytest.raises(UnsupportedModelError, match=r"differ from timm's own by up to [0-9.e-]+, so"):
        check_against_timm(model, make_pixels(2))


def test_check_against_timm_leaves_the_mode_alone(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """The check compares in evaluation mode by timm's operations and gives the model back as it was."""
    vit = make_vit(drop_path_rate=0.5, proj_drop_rate=0.5)
    model = PrunedViT(vit).train()
    check_against_timm(model, make_pixels(2))
    assert model.training
    assert vit.blocks[2].training
    assert not model.exact
    model.exact = True
    check_against_timm(model.eval(), make_pixels(2))
    assert not model.training
    assert model.exact
