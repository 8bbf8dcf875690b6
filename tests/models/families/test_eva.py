"""timm's Eva, with rotary positions: its own logits at keep ratio 1, pruned as a slow and obvious network, in
a ragged batch as alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.eva import Eva, EvaBlockPostNorm
from torch import Tensor, nn

from models.families import UnsupportedModelError
from models.life import add_predictor
from models.pruned_vit import PrunedViT, check_against_timm
from models.schedule import CRITERIA, REDUCERS, UNPRUNED, Criterion, Pruning, Reducer, keep_counts
from tests.models.reference import reference
from tests.models.served import TOLERANCE, difference_from_timm

MakePixels = Callable[..., Tensor]
Randomise = Callable[..., nn.Module]

# timm's own definitions, made small: 3 x 5 patches, 4 blocks, 6 heads of 12 values.
TIMM_NAMES = {
    "EVA (no rotary positions)": "eva_giant_patch14_224",
    "EVA-02": "eva02_tiny_patch14_224",
    "EVA-02 (three layers for q, k and v)": "eva02_base_patch14_448",
    "EVA-02 CLIP": "eva02_base_patch16_clip_224",
    "ViT with rotary positions and a register": "vit_medium_patch16_rope_reg1_gap_256",
    "PE, map pooling": "vit_pe_core_small_patch16_384",
    "PE, no CLS": "vit_pe_core_gigantic_patch14_448",
    "PE lang": "vit_pe_lang_large_patch14_448",
    "PE spatial": "vit_pe_spatial_small_patch16_512",
    "RoPE-ViT, axial": "vit_small_patch16_rope_224",
    "RoPE-ViT, mixed, with embedding": "vit_base_patch16_rope_mixed_ape_224",
    "DINOv3": "vit_small_patch16_dinov3",
    "DINOv3 (biases)": "vit_small_patch16_dinov3_qkvb",
    "DINOv3 (SwiGLU)": "vit_small_plus_patch16_dinov3",
}
POOLED_OTHERWISE = {"PE lang", "PE spatial"}  # timm gives these no pooling


def make(name: str, randomise: Randomise, **changes: Any) -> Eva:
    patch = 14 if "patch14" in TIMM_NAMES[name] else 16
    arguments: dict[str, Any] = {
        "num_classes": 13,
        "img_size": (3 * patch, 5 * patch),
        "depth": 4,
        "embed_dim": 72,
        "num_heads": 6,
        "dynamic_img_size": False,
    }
    if name == "PE, map pooling":
        arguments["attn_pool_num_heads"] = 6
    if name in POOLED_OTHERWISE:
        arguments["global_pool"] = "avg"
    return randomise(timm.create_model(TIMM_NAMES[name], **{**arguments, **changes})).eval()  # type: ignore[return-value]


@pytest.fixture(params=TIMM_NAMES)
def eva(request: pytest.FixtureRequest, randomise: Randomise) -> Eva:
    return make(request.param, randomise)


def images_for(eva: Eva, make_pixels: MakePixels, images: int) -> Tensor:
    return make_pixels(images, size=eva.patch_embed.img_size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ratio_1_is_timm_to_the_last_bit(eva: Eva, make_pixels: MakePixels, dtype: torch.dtype) -> None:
    """For every kind, at keep ratio 1 the exact logits are timm's own, bit for bit, and every patch is
    kept."""
    eva = eva.to(dtype)
    pixels = images_for(eva, make_pixels, 2).to(dtype)
    model = PrunedViT(eva)
    model.exact = True
    with torch.inference_mode():
        output = model(pixels, [UNPRUNED] * 2)
        assert torch.equal(output.logits, eva(pixels))
    assert output.logits.std() > 0.1
    assert [[kept.tolist() for kept in stage] for stage in output.kept] == [[list(range(15))] * 2] * 3


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_what_is_served_at_ratio_1_is_near_timm(
    eva: Eva, make_pixels: MakePixels, dtype: torch.dtype
) -> None:
    """For every kind, within the tolerance that is published for the dtype."""
    assert difference_from_timm(eva, images_for(eva, make_pixels, 3), dtype) <= TOLERANCE[dtype]


def test_every_parameter_matters(eva: Eva, make_pixels: MakePixels) -> None:
    """The random parameters are such that a forward pass which forgot one would not pass for timm's."""
    PrunedViT(eva)(images_for(eva, make_pixels, 2), [UNPRUNED] * 2).logits.square().sum().backward()
    for name, parameter in eva.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-7, name


def test_positions_go_with_their_patches(
    eva: Eva, make_pixels: MakePixels, give_pools: Callable[[nn.Module], None]
) -> None:
    """Pruned by each reducer, every kind keeps the patches and has the logits of the slow reference, which
    rotates each patch by where it stood, and a pooled token by its query's place."""
    pixels = images_for(eva, make_pixels, 6)
    give_pools(eva)
    model = PrunedViT(eva)
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
            logits, kept = reference(eva, model.stages, pixels[image], pruning)
            assert [stage[image].tolist() for stage in output.kept] == kept
            np.testing.assert_allclose(output.logits[image], logits, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", ["EVA-02", "RoPE-ViT, mixed, with embedding", "PE, no CLS"])
def test_every_criterion_agrees_with_a_slow_reference(
    make_pixels: MakePixels,
    randomise: Randomise,
    give_pools: Callable[[nn.Module], None],
    name: str,
    criterion: Criterion,
    reducer: Reducer,
) -> None:
    """By the CLS row and by all rows."""
    eva = make(name, randomise)
    give_pools(eva)
    randomise(add_predictor(eva, 1))
    model, pixels = PrunedViT(eva), images_for(eva, make_pixels, 2)
    prunings = [Pruning(0.6, criterion, reducer, seed=image) for image in range(2)]
    with torch.inference_mode():
        output = model(pixels, prunings)
        for image, pruning in enumerate(prunings):
            logits, kept = reference(eva, model.stages, pixels[image], pruning)
            assert [stage[image].tolist() for stage in output.kept] == kept
            assert tuple(map(len, kept)) == keep_counts(15, 0.6, 3)
            np.testing.assert_allclose(output.logits[image], logits, rtol=1e-4, atol=2e-4)


def test_in_any_company_an_image_is_treated_as_alone(eva: Eva, make_pixels: MakePixels) -> None:
    """A batch of different ratios, reducers and criteria keeps for each image what it keeps alone."""
    model = PrunedViT(eva)
    prunings = [
        Pruning(0.7),
        Pruning(1.0),
        Pruning(0.3, "mean", "fuse"),
        Pruning(keep_mass=0.9),  # of two patches alone in an image both have the same variance
        Pruning(0.5, reducer="merge"),
        Pruning(0.7, "random", seed=3),
    ]
    pixels = images_for(eva, make_pixels, len(prunings))
    with torch.inference_mode():
        together = model(pixels, prunings)
        for image, pruning in enumerate(prunings):
            alone = model(pixels[image : image + 1], [pruning])
            assert [stage[image].tolist() for stage in together.kept] == [
                stage[0].tolist() for stage in alone.kept
            ]
            torch.testing.assert_close(together.logits[image], alone.logits[0], rtol=1e-4, atol=2e-5)


def test_gradients_reach_every_parameter(eva: Eva, make_pixels: MakePixels) -> None:
    """It can be trained with pruning, ragged."""
    model = PrunedViT(eva).train()
    logits = model(images_for(eva, make_pixels, 3), [Pruning(ratio) for ratio in (0.9, 0.5, 0.7)]).logits
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in eva.parameters())


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"dynamic_img_size": True}, "dynamic_img_size"),
        ({"patch_drop_rate": 0.1}, "drops random patches"),
        ({"global_pool": ""}, "an output per token"),
        ({"use_post_norm": True, "qk_norm": False}, f"blocks of class {EvaBlockPostNorm.__name__}"),
        ({"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 3}, "share keys and values"),
    ],
    ids=str,
)
def test_what_cannot_be_pruned_is_refused(
    randomise: Randomise, arguments: dict[str, Any], found: str
) -> None:
    """By name."""
    with pytest.raises(UnsupportedModelError, match=found):
        PrunedViT(make("EVA-02", randomise, **arguments))


def test_a_subclass_is_refused() -> None:
    """It may do anything in its forward pass."""

    class Reversed(Eva):
        pass

    with pytest.raises(UnsupportedModelError, match="its class is Reversed"):
        PrunedViT(Reversed(img_size=32, embed_dim=48, depth=2, num_heads=4))


def test_a_changed_forward_is_found_out(randomise: Randomise, make_pixels: MakePixels) -> None:
    """However right its class."""
    eva = make("DINOv3", randomise)
    check_against_timm(PrunedViT(eva), images_for(eva, make_pixels, 2))
    eva.blocks[2].register_forward_hook(lambda _module, _args, result: result * 1.001)
    with pytest.raises(UnsupportedModelError, match="differ from timm's own"):
        check_against_timm(PrunedViT(eva), images_for(eva, make_pixels, 2))
