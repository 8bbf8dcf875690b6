"""Static attention: against a slow reference, in any company and in every way; refusals."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.classifier import Classifier
from models.families import UnsupportedModelError
from models.load import input_spec_of
from models.paca import Paca
from models.patch_embed import set_image_size, set_patch_stride
from models.pruned_vit import PrunedViT, check_against_timm
from models.schedule import REDUCERS, UNPRUNED, Architecture, Pruning, Stages, macs
from models.static_attention import StaticAttention, make_static, static_blocks_of, static_of
from models.static_blocks import check_static
from tests.models.graphed import assert_graph_answers, assert_ragged_graph_answers, launched
from tests.models.reference import reference

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]
Randomise = Callable[..., nn.Module]

STAGES = Stages((2, 3))
ALL_ROWS = Stages((2, 3), "all")
VARIANTS: dict[str, tuple[dict[str, Any], Stages]] = {
    "CLS": ({}, STAGES),
    "registers, LayerScale, norms": (
        {"reg_tokens": 2, "init_values": 0.1, "qk_norm": True, "scale_attn_norm": True},
        STAGES,
    ),
    "average without CLS": ({"class_token": False, "global_pool": "avg", "qkv_bias": False}, ALL_ROWS),
    "beside clusters": ({"paca": Paca((4,), 3)}, STAGES),
}
# What there can be in one batch, in no order.
MIXED = [
    Pruning(0.7),
    Pruning(1.0),
    Pruning(0.45, "mean", "fuse"),
    Pruning(0.5, reducer="merge"),
    Pruning(0.3, "mad"),
    Pruning(0.7, "random", seed=3),
    Pruning(0.6, "life"),
    Pruning(0.6, reducer="pool"),
    Pruning(0.6, reducer="transform"),
]


def assert_as_reference(model: PrunedViT, pixels: Tensor, prunings: list[Pruning]) -> None:
    with torch.inference_mode():
        output = model(pixels, prunings)
        for image, pruning in enumerate(prunings):
            logits, kept = reference(model.family.network, model.stages, pixels[image], pruning)
            assert [stage[image].tolist() for stage in output.kept] == kept
            np.testing.assert_allclose(output.logits[image], logits, rtol=1e-4, atol=2e-4)


# What is computed.


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_agree_with_a_slow_reference(make_vit: MakeViT, make_pixels: MakePixels, variant: str) -> None:
    """An image at a time, in float64: a ragged batch of every reducer behind two static blocks."""
    arguments, stages = VARIANTS[variant]
    vit = make_vit(static=2, life=2, pool=True, **arguments)
    assert_as_reference(PrunedViT(vit, stages), make_pixels(len(MIXED)), MIXED)


@pytest.mark.parametrize(
    "name",
    [
        "eva02_tiny_patch14_224",
        "vit_base_patch16_rope_mixed_ape_224",
        "vit_small_patch16_dinov3_qkvb",
        "vit_pe_core_tiny_patch16_384",
    ],
)
def test_values_have_no_rotary_position(randomise: Randomise, make_pixels: MakePixels, name: str) -> None:
    """Networks with rotary positions: these were in what the matrices are made of."""
    side = 14 if "patch14" in name else 16
    vit: Any = timm.create_model(
        name, num_classes=13, img_size=(3 * side, 5 * side), depth=4, embed_dim=72, num_heads=6,
        dynamic_img_size=False,
    )  # fmt: skip
    make_static(vit, 1)
    randomise(vit).eval()
    pixels = make_pixels(3, size=vit.patch_embed.img_size)
    rows = "cls" if vit.cls_token is not None else "all"
    model = PrunedViT(vit, Stages((1, 3), rows))
    assert_as_reference(model, pixels, [Pruning(0.5), Pruning(0.8, "mad"), UNPRUNED])
    check_against_timm(model, pixels)


def test_a_gate_and_a_norm_are_those_of_the_block(make_pixels: MakePixels) -> None:
    """Of timm's attention all is kept but queries, keys and their product."""
    torch.manual_seed(3)
    attn = Attention(
        10, num_heads=2, attn_head_dim=3, qkv_bias=True, scale_norm=True, gated=True, norm_layer=nn.LayerNorm
    )
    nn.init.normal_(attn.norm.weight)
    static, x = StaticAttention(attn, 7), torch.randn(4, 7, 10)
    weights = torch.randn(2, 7, 7).softmax(dim=-1)
    static.inherit(weights)
    with torch.no_grad():
        values = attn.qkv(x)[..., 12:].unflatten(2, (2, 3))
        mixed = torch.einsum("hqk,bkhd->bqhd", weights, values).flatten(2)
        wanted = attn.proj(attn.norm(mixed) * attn.gate(x).sigmoid())
        torch.testing.assert_close(static(x, rope=None, attn_mask=None), wanted)


def test_gradients_of_the_logits_are_those_of_a_slow_reference() -> None:
    """A number at a time, in float64; over all images of a batch."""
    torch.manual_seed(4)
    attn = StaticAttention(Attention(6, num_heads=2), 4)
    assert attn.logits is not None
    nn.init.normal_(attn.logits)
    x, towards = torch.randn(3, 4, 6), torch.randn(3, 4, 6)
    (attn(x) * towards).sum().backward()
    values = attn.v(x).detach().double().unflatten(2, (2, 3)).numpy()
    of_mixed = (towards.double() @ attn.proj.weight.detach().double()).unflatten(2, (2, 3)).numpy()
    wanted = np.zeros((2, 4, 4))
    for head in range(2):
        powers = np.exp(attn.logits[head].detach().double().numpy())
        for row in range(4):
            weights = [power / sum(powers[row]) for power in powers[row]]
            of_weights = [
                sum(
                    of_mixed[image, row, head, place] * values[image, column, head, place]
                    for image in range(3)
                    for place in range(3)
                )
                for column in range(4)
            ]
            mean = sum(weight * own for weight, own in zip(weights, of_weights, strict=True))
            wanted[head, row] = [
                weight * (own - mean) for weight, own in zip(weights, of_weights, strict=True)
            ]
    assert attn.logits.grad is not None
    np.testing.assert_allclose(attn.logits.grad, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_in_any_company_an_image_is_treated_as_alone(
    make_vit: MakeViT, make_pixels: MakePixels, dtype: torch.dtype
) -> None:
    """Also in packed bfloat16 and in int8, whose layers values and outputs get, too."""
    vit = make_vit(static=2, life=2, pool=True)
    classifier = Classifier(PrunedViT(vit, STAGES), input_spec_of(vit), "cpu", dtype)
    layers = {type(module).__name__ for module in vit.blocks[0].attn.modules()}
    assert not layers & {"Linear"}
    pixels = make_pixels(len(MIXED)).to(next(vit.parameters()).dtype)
    with torch.inference_mode():
        together = classifier.model(pixels, MIXED)
        for image, pruning in enumerate(MIXED):
            alone = classifier.model(pixels[image : image + 1], [pruning])
            assert [stage[image].tolist() for stage in together.kept] == [
                stage[0].tolist() for stage in alone.kept
            ]
            atol = 2e-5 if dtype == torch.float32 else 0.1
            torch.testing.assert_close(together.logits[image], alone.logits[0], rtol=0, atol=atol)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.03), (torch.int8, 0.1)])
@pytest.mark.parametrize("stages", [STAGES, Stages(())])
def test_low_precision_is_near_float32(
    make_vit: MakeViT, make_pixels: MakePixels, dtype: torch.dtype, most: float, stages: Stages
) -> None:
    """Within what is published for other networks (docs/performance.md)."""
    vit, pixels = make_vit(static=2), make_pixels(3)
    prunings = [UNPRUNED] * 3
    with torch.inference_mode():
        wanted = PrunedViT(deepcopy(vit), stages)(pixels, prunings).logits
        classifier = Classifier(PrunedViT(vit, stages), input_spec_of(vit), "cpu", dtype)
        own = pixels.to(next(vit.parameters()).dtype)
        got = classifier.model(own, prunings).logits.float()
    assert ((got - wanted).norm() / wanted.norm()).item() <= most
    classifier.make_kernels(40, 5.0)


def test_what_is_served_has_matrices_and_no_logits(make_vit: MakeViT) -> None:
    """The softmax is computed once, in float32, and only the result is rounded."""
    vit = make_vit(static=2)
    logits = [static_of(block).logits.detach().double() for block in vit.blocks[:2]]  # type: ignore[union-attr]
    Classifier(PrunedViT(vit, STAGES), input_spec_of(vit), "cpu", torch.bfloat16)
    for own, block in zip(logits, vit.blocks, strict=False):
        static = static_of(block)
        assert static is not None
        assert static.logits is None
        assert static.matrices is not None
        assert static.matrices.dtype == torch.bfloat16
        torch.testing.assert_close(static.matrices.double(), own.softmax(dim=-1), rtol=2**-8 + 1e-5, atol=0)
        before = static.matrices
        static.settle()
        assert static.matrices is before


def test_many_ratios_take_as_many_operations_as_one(make_vit: MakeViT) -> None:
    """On a GPU, 64 ratios launch at most 1.2 times the kernels of one, and nothing more is copied."""
    ratios = [Pruning(0.5 + (37 * image % 64) / 128) for image in range(64)]
    (one, none), (many, copies) = (launched(make_vit, own, static=3) for own in (ratios[:1] * 64, ratios))
    assert many <= 1.2 * one, (many, one)
    assert (none, copies) == (0, 1)


@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize("pruning", [Pruning(), *(Pruning(0.6, "mad", name) for name in REDUCERS)], ids=str)
def test_a_graph_answers_as_the_model(make_vit: MakeViT, make_pixels: MakePixels, pruning: Pruning) -> None:
    """Of images that are pruned alike."""
    model = PrunedViT(make_vit(static=2, pool=True), STAGES)
    assert_graph_answers(model, make_pixels, pruning)


@pytest.mark.usefixtures("inference")
def test_a_graph_of_ragged_batches_answers_as_the_model(
    make_vit: MakeViT, make_pixels: MakePixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch after batch."""
    model = PrunedViT(make_vit(embed_dim=48, static=2), STAGES)
    assert_ragged_graph_answers(model, make_pixels, monkeypatch)


# What it costs, what it is made of.


@pytest.mark.parametrize("keep_ratio", [1.0, 0.6])
def test_macs_are_those_that_are_computed(
    make_vit: MakeViT, make_pixels: MakePixels, keep_ratio: float
) -> None:
    """As PyTorch counts them, but for what a stage computes to decide, and saves, as in networks without."""
    found = {}
    for static in (0, 2):
        vit = make_vit(static=static, reg_tokens=2)
        for block in vit.blocks[static:]:
            block.attn.fused_attn = False  # of which PyTorch counts nothing on a CPU
        model = PrunedViT(vit, STAGES)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            model(make_pixels(2), [Pruning(keep_ratio)] * 2)
        counts = STAGES.keep_counts(model.arch.patches, keep_ratio)
        found[static] = counter.get_total_flops() - 2 * 2 * macs(model.arch, STAGES, counts)
    assert len(set(found.values())) == 1
    if keep_ratio == 1:
        assert set(found.values()) == {0}


@given(
    depth=st.integers(2, 9),
    dim=st.integers(1, 50),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    ratio=st.floats(0.01, 1),
    data=st.data(),
)
def test_static_blocks_halve_what_attention_costs(
    depth: int, dim: int, grid: tuple[int, int], ratio: float, data: st.DataObject
) -> None:
    """Of each of them, whatever is pruned behind them."""
    static = data.draw(st.integers(0, depth - 1))
    stages = Stages(tuple(sorted(data.draw(st.sets(st.integers(static, depth - 1))))))
    plain = Architecture(depth, dim, 3 * dim, grid, 1, 48, 7)
    arch = Architecture(depth, dim, 3 * dim, grid, 1, 48, 7, static_blocks=static)
    counts, tokens = stages.keep_counts(arch.patches, ratio), arch.tokens
    saved = macs(plain, stages, counts) - macs(arch, stages, counts)
    assert saved == static * (2 * tokens * dim**2 + tokens**2 * dim)


def test_the_whole_network_is_compared_with_timm(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """timm's own forward pass calls the static blocks, too: bit for bit."""
    for arguments in ({}, {"init_values": 0.1, "reg_tokens": 2}):
        model, pixels = PrunedViT(make_vit(static=2, **arguments), STAGES), make_pixels(2)
        check_against_timm(model, pixels)
        model.vit.blocks[0].register_forward_hook(lambda _module, _args, result: result * 1.001)
        with pytest.raises(UnsupportedModelError, match="differ from timm's own"):
            check_against_timm(model, pixels)


def test_every_parameter_matters_and_learns(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """Gradients reach every parameter, in a ragged batch."""
    vit = make_vit(static=2)
    prunings = [Pruning(0.9), Pruning(0.5), Pruning(0.7)]
    PrunedViT(vit, STAGES).train()(make_pixels(3), prunings).logits.square().sum().backward()
    for name, parameter in vit.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-7, name


def test_it_takes_the_place_of_a_blocks_attention(make_vit: MakeViT) -> None:
    """In the first blocks, with their own weights; whatever copies or saves the network takes it along."""
    vit = make_vit()
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    assert static_blocks_of(tuple(vit.blocks)) == 0
    make_static(vit, 2)
    make_static(vit, 1)  # it has that already
    assert static_blocks_of(tuple(deepcopy(vit).blocks)) == 2
    assert PrunedViT(vit, STAGES).arch.static_blocks == 2
    after = vit.state_dict()
    for block in range(2):
        attn = f"blocks.{block}.attn."
        assert {name.removeprefix(attn) for name in after if name.startswith(attn)} == {
            "logits", "v.weight", "v.bias", "proj.weight", "proj.bias",
        }  # fmt: skip
        assert after[f"{attn}logits"].shape == (6, 36, 36)
        assert torch.equal(after[f"{attn}v.weight"], before[f"{attn}qkv.weight"][132:])
        assert torch.equal(after[f"{attn}v.bias"], before[f"{attn}qkv.bias"][132:])
        assert torch.equal(after[f"{attn}proj.weight"], before[f"{attn}proj.weight"])


# Where it can be.


def test_stages_in_static_blocks_are_refused(make_vit: MakeViT) -> None:
    """By the number of the block, as people count, with what is allowed."""
    with pytest.raises(ValueError, match=r"blocks 1 to 2 have static attention, so block 2 cannot prune.*"
                       "choose stages from block 3 on, or at most 1 static block$"):  # fmt: skip
        PrunedViT(make_vit(static=2))
    with pytest.raises(
        ValueError, match=r"block 1 has static attention, so block 1 cannot prune.*from block 2 on$"
    ):
        PrunedViT(make_vit(static=1), Stages((0, 2)))
    assert PrunedViT(make_vit(static=2), Stages((2,))).arch.static_blocks == 2


def test_blocks_with_clusters_and_too_many_are_refused(make_vit: MakeViT) -> None:
    """A block attends to clusters or has static attention, and the last one is never static."""
    with pytest.raises(ValueError, match=r"block 2 cannot attend to clusters of patches \(PaCa\); choose "
                       "blocks with clusters from block 3 on, or at most 1 static block$"):  # fmt: skip
        check_static(2, (4,), 5, Paca((1, 3), 7))
    check_static(2, (4,), 5, Paca((2, 3), 7))
    check_static(0, (0,), 1, Paca((0,), 7))
    with pytest.raises(ValueError, match="the network has 5 blocks, of which at most the first 4 can"):
        make_vit(static=5)
    with pytest.raises(ValueError, match="block 1 cannot attend to clusters"):
        PrunedViT(make_vit(static=1, paca=Paca((0,), 3)), STAGES)


def test_other_grids_are_refused(make_vit: MakeViT) -> None:
    """A matrix belongs to its number of tokens; what changes nothing is no change."""
    vit = make_vit(static=2)
    set_image_size(vit, (20, 28))
    set_patch_stride(vit, 4)
    with pytest.raises(ValueError, match="its first 2 blocks have static attention, which was trained for "
                       "5 x 7 patches, so no other input size is possible"):  # fmt: skip
        set_image_size(vit, (24, 28))
    with pytest.raises(ValueError, match="no other patch stride is possible"):
        set_patch_stride(vit, 2)
