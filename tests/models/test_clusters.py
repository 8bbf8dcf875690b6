"""Attention to clusters of patches: against a slow reference, in any company and in every way; refusals."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.classifier import Classifier
from models.clusters import Clustering, add_clusters, clustering_of, paca_of
from models.families import UnsupportedModelError
from models.linear.layer import replace_linears
from models.linear.plain import PlainLinear
from models.load import input_spec_of
from models.paca import Paca
from models.pruned_vit import PrunedViT, check_against_timm
from models.ragged import Packing, Tokens
from models.schedule import REDUCERS, UNPRUNED, Criterion, Pruning, Stages, every_block, macs
from tests.models.batches import batches
from tests.models.graphed import assert_graph_answers, assert_ragged_graph_answers, assert_same, launched
from tests.models.reference import reference, reference_clusters
from tests.models.varlen_reference import Reference, take_varlen
from tests.support.examples import examples

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]
Randomise = Callable[..., nn.Module]

# Before the first stage, between the two, and behind them.
PACA = Paca((0, 2, 4), 7)
STAGES = Stages((1, 3))
ALL_ROWS = Stages((1, 3), "all")
VARIANTS: dict[str, tuple[dict[str, Any], Stages]] = {
    "CLS": ({}, STAGES),
    "registers, LayerScale, norms": (
        {"reg_tokens": 2, "init_values": 0.1, "qk_norm": True, "scale_attn_norm": True},
        STAGES,
    ),
    "average without CLS": ({"class_token": False, "global_pool": "avg", "qkv_bias": False}, ALL_ROWS),
}
# What there can be in one batch, in no order.
MIXED = [
    Pruning(0.7),
    Pruning(1.0),
    Pruning(0.45, "mean", "fuse"),
    Pruning(0.5, reducer="merge"),
    Pruning(0.3, "mad"),
    Pruning(0.7, "random", seed=3),
    Pruning(0.6, reducer="fuse"),
    Pruning(0.6, reducer="pool"),
    Pruning(0.6, reducer="transform"),
]


# What is computed.


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fused", [True, False])
def test_logits_agree_with_a_slow_reference(
    make_vit: MakeViT, make_pixels: MakePixels, variant: str, *, fused: bool
) -> None:
    """An image at a time, a number at a time, in float64: a ragged batch of every reducer. Fused tokens are
    clustered as patches are, merged ones count for as many as they stand for."""
    arguments, stages = VARIANTS[variant]
    vit = make_vit(paca=PACA, pool=True, **arguments)
    for block in vit.blocks:
        block.attn.fused_attn = fused
    model, pixels = PrunedViT(vit, stages), make_pixels(len(MIXED))
    with torch.inference_mode():
        output = model(pixels, MIXED)
        for image, pruning in enumerate(MIXED):
            logits, kept = reference(vit, stages, pixels[image], pruning)
            assert [stage[image].tolist() for stage in output.kept] == kept
            np.testing.assert_allclose(output.logits[image], logits, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("criterion", ["variance", "renyi_1", "life"])
@pytest.mark.parametrize("clusters", [1, 49])
def test_fewer_and_more_clusters_than_patches(
    make_vit: MakeViT, make_pixels: MakePixels, clusters: int, criterion: Criterion
) -> None:
    """One, and more than there are patches: at the lowest ratio, one patch is 49 clusters."""
    vit, pixels = make_vit(paca=Paca((2, 4), clusters), life=1), make_pixels(2)
    model, prunings = PrunedViT(vit, STAGES), [Pruning(0.6, criterion), Pruning(0.01, criterion)]
    with torch.inference_mode():
        output = model(pixels, prunings)
        for image, pruning in enumerate(prunings):
            logits, kept = reference(vit, STAGES, pixels[image], pruning)
            assert [stage[image].tolist() for stage in output.kept] == kept
            np.testing.assert_allclose(output.logits[image], logits, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
    "name", ["eva02_tiny_patch14_224", "vit_base_patch16_rope_mixed_ape_224", "vit_small_patch16_dinov3_qkvb"]
)
def test_clusters_have_no_rotary_position(randomise: Randomise, make_pixels: MakePixels, name: str) -> None:
    """Queries are rotated by where they stood; clusters are not, as CLS is not."""
    side = 14 if "patch14" in name else 16
    vit: Any = timm.create_model(
        name, num_classes=13, img_size=(3 * side, 5 * side), depth=4, embed_dim=72, num_heads=6,
        dynamic_img_size=False,
    )  # fmt: skip
    add_clusters(tuple(vit.blocks), Paca((0, 2), 5), 72)
    randomise(vit).eval()
    prunings = [Pruning(0.5), Pruning(0.8, "mad"), Pruning(0.4, reducer="merge"), UNPRUNED]
    pixels = make_pixels(4, size=vit.patch_embed.img_size)
    stages = Stages((1, 3))
    model = PrunedViT(vit, stages)
    with torch.inference_mode():
        output = model(pixels, prunings)
        for image, pruning in enumerate(prunings):
            logits, kept = reference(vit, stages, pixels[image], pruning)
            assert [stage[image].tolist() for stage in output.kept] == kept
            np.testing.assert_allclose(output.logits[image], logits, rtol=1e-4, atol=2e-4)


def test_clusters_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two patches, of which the MLP gives the first three times the weight for one cluster, and both the same
    for the other: in front of them CLS as it is."""
    clustering = Clustering(4, 2)
    rows = torch.tensor([[[9.0, 9, 9, 9], [1, 0, 0, 0], [0, 1, 0, 0]]])
    logits = torch.tensor([[[7.0, 7], [float(np.log(3)), 5], [0, 5]]])
    monkeypatch.setattr("models.clusters.mlp", lambda _module, _rows: logits)
    tokens = Tokens(rows, Packing((3,)), (2,), torch.tensor([-1, 0, 1]))
    with torch.no_grad():
        found = clustering.source(tokens, rows, 1, in_one=False)

    def normed(*values: float) -> list[float]:
        return [float(each) for each in (np.array(values) - np.mean(values)) / np.std(values)]

    wanted = [[9.0] * 4, normed(0.75, 0.25, 0, 0), normed(0.5, 0.5, 0, 0)]
    torch.testing.assert_close(found.rows, torch.tensor([wanted]), rtol=1e-4, atol=1e-4)
    assert found.packing.lengths == (3,)


def test_clusters_come_in_few_shapes_where_tokens_do() -> None:
    """Then the rows of an odd number of images are rounded up by zeros; else they are no more than there are.
    The clusters are the same."""
    clustering = Clustering(12, 3)
    replace_linears(clustering, PlainLinear)
    normed = torch.randn(19, 12, generator=torch.Generator().manual_seed(2))
    lengths = (7, 7, 5)
    few, own = (
        Tokens(normed, Packing(lengths, rows), (5, 5, 3), torch.zeros(19, dtype=torch.int64))
        for rows in (20, 0)
    )
    with torch.no_grad():
        padded = torch.cat((normed, torch.full((1, 12), 9.0)))
        in_few = clustering.source(few.with_rows(padded), padded, 2, in_one=False)
        as_they_are = clustering.source(own, normed, 2, in_one=False)
    assert as_they_are.rows.shape == (3, 5, 12)
    assert in_few.rows.shape == (16, 12)
    assert in_few.packing == Packing((5, 5, 5), 16)
    torch.testing.assert_close(in_few.rows[:15], as_they_are.rows.flatten(0, 1))
    assert not in_few.rows[15:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_in_any_company_an_image_is_treated_as_alone(
    make_vit: MakeViT, make_pixels: MakePixels, dtype: torch.dtype
) -> None:
    """Also in packed bfloat16 and in int8, whose layers the clustering gets, too."""
    vit = make_vit(paca=PACA, pool=True)
    classifier = Classifier(PrunedViT(vit, STAGES), input_spec_of(vit), "cpu", dtype)
    layers = {type(module).__name__ for module in vit.blocks[2].clusters.mlp.modules()}
    assert not layers & {"Linear"}
    model = classifier.model
    pixels = make_pixels(len(MIXED)).to(next(vit.parameters()).dtype)
    with torch.inference_mode():
        together = model(pixels, MIXED)
        for image, pruning in enumerate(MIXED):
            alone = model(pixels[image : image + 1], [pruning])
            assert [stage[image].tolist() for stage in together.kept] == [
                stage[0].tolist() for stage in alone.kept
            ]
            atol = 2e-5 if dtype == torch.float32 else 0.1
            torch.testing.assert_close(together.logits[image], alone.logits[0], rtol=0, atol=atol)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.03), (torch.int8, 0.1)])
def test_low_precision_is_near_float32(
    make_vit: MakeViT, make_pixels: MakePixels, dtype: torch.dtype, most: float
) -> None:
    """Within what is published for networks without clusters (docs/performance.md)."""
    vit, pixels = make_vit(paca=PACA), make_pixels(3)
    prunings = [UNPRUNED] * 3
    with torch.inference_mode():
        wanted = PrunedViT(deepcopy(vit), STAGES)(pixels, prunings).logits
        classifier = Classifier(PrunedViT(vit, STAGES), input_spec_of(vit), "cpu", dtype)
        own = pixels.to(next(vit.parameters()).dtype)
        got = classifier.model(own, prunings).logits.float()
    assert ((got - wanted).norm() / wanted.norm()).item() <= most
    classifier.make_kernels(40, 5.0)


# In one table.


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=examples(6))
@given(prunings=batches(by_mass=False))
def test_one_table_gives_what_the_runs_give(
    make_vit: MakeViT, make_pixels: MakePixels, variant: str, prunings: list[Pruning]
) -> None:
    """Where attention is one call, so are clusters: with the same logits and patches."""
    arguments, stages = VARIANTS[variant]
    model = PrunedViT(make_vit(embed_dim=48, paca=PACA, life=1, pool=True, **arguments), stages)
    pixels = make_pixels(len(prunings))
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        runs = model(pixels, prunings)
        patch.setattr("torch.nn.attention.varlen.varlen_attn", Reference().varlen_attn)
        take_varlen(patch)
        assert_same(model(pixels, prunings), runs)


def test_many_ratios_take_as_many_operations_as_one(make_vit: MakeViT) -> None:
    """On a GPU, 64 ratios launch at most 1.2 times the kernels of one; nothing waits, and clusters need
    nothing more of what the host knows."""
    paca = Paca((4, 7, 10), 7)
    ratios = [Pruning(0.5 + (37 * image % 64) / 128) for image in range(64)]
    (one, none), (many, copies) = (launched(make_vit, own, paca=paca) for own in (ratios[:1] * 64, ratios))
    assert many <= 1.2 * one, (many, one)
    assert (none, copies) == (0, 1)


@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize("pruning", [Pruning(), *(Pruning(0.6, "mad", name) for name in REDUCERS)], ids=str)
def test_a_graph_answers_as_the_model(make_vit: MakeViT, make_pixels: MakePixels, pruning: Pruning) -> None:
    """Of images that are pruned alike."""
    model = PrunedViT(make_vit(paca=PACA, pool=True), STAGES)
    assert_graph_answers(model, make_pixels, pruning)


@pytest.mark.usefixtures("inference")
def test_a_graph_of_ragged_batches_answers_as_the_model(
    make_vit: MakeViT, make_pixels: MakePixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch after batch."""
    model = PrunedViT(make_vit(embed_dim=48, paca=PACA), Stages((1, 3)))
    assert_ragged_graph_answers(model, make_pixels, monkeypatch)


# What it costs, what it is made of.


@pytest.mark.parametrize("keep_ratio", [1.0, 0.6])
def test_macs_are_those_that_are_computed(
    make_vit: MakeViT, make_pixels: MakePixels, keep_ratio: float
) -> None:
    """As PyTorch counts them, but for what a stage computes to decide, and saves, as in networks without
    clusters."""
    stages, arguments = Stages((1, 3)), {"reg_tokens": 2}
    found = {}
    for paca in (None, Paca((0, 2, 4), 3)):
        vit = make_vit(paca=paca, **arguments)
        for block in vit.blocks:
            block.attn.fused_attn = False  # of which PyTorch counts nothing on a CPU
        model = PrunedViT(vit, stages)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            model(make_pixels(2), [Pruning(keep_ratio)] * 2)
        counts = stages.keep_counts(model.arch.patches, keep_ratio)
        found[paca] = counter.get_total_flops() - 2 * 2 * macs(model.arch, stages, counts)
    assert len(set(found.values())) == 1
    if keep_ratio == 1:
        assert set(found.values()) == {0}


def test_all_but_the_clusters_is_compared_with_timm(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """What timm does not know is left out, and found out is what else differs."""
    model, pixels = PrunedViT(make_vit(paca=PACA), STAGES), make_pixels(2)
    check_against_timm(model, pixels)
    assert model.clusters
    model.vit.blocks[2].register_forward_hook(lambda _module, _args, result: result * 1.001)
    with pytest.raises(UnsupportedModelError, match="differ from timm's own"):
        check_against_timm(model, pixels)


def test_every_parameter_matters_and_learns(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """Gradients reach every parameter, in a ragged batch, and in training by lives, where patches fade out of
    clusters."""
    for prunings in ([Pruning(0.9), Pruning(0.5), Pruning(0.7)], [Pruning(0.5, "life")] * 3):
        vit = make_vit(paca=PACA, life=1)
        model = PrunedViT(vit, STAGES).train()
        model(make_pixels(3), prunings).logits.square().sum().backward()
        for name, parameter in vit.named_parameters():
            if not name.startswith("life."):
                assert parameter.grad is not None, name
                assert parameter.grad.abs().max() > 1e-7, name


def test_a_beginning_keeps_what_attention_read() -> None:
    """Of one patch alone every cluster is made of that patch, and is then its row but for a hundredth, for
    rows as a norm of ordinary gains gives them; and clusters of many patches differ from each other."""
    norm = nn.LayerNorm(384)
    torch.manual_seed(0)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0.3, 0.4)
    clustering = Clustering(384, 5)
    clustering.begin(norm)
    replace_linears(clustering, PlainLinear)
    rows = norm(torch.randn(1, 62, 384)).detach()
    one = Tokens(rows[:, :2], Packing((2,)), (1,), torch.tensor([-1, 0]))
    many = Tokens(rows, Packing((62,)), (61,), torch.arange(-1, 61))
    with torch.no_grad():
        of_one = clustering.source(one, one.rows, 1, in_one=False).rows[0, 1:]
        of_many = clustering.source(many, rows, 1, in_one=False).rows[0, 1:]
        weights = clustering.mlp(rows)[0, 1:].softmax(dim=0)
    distance = (of_one - rows[0, 1]).norm(dim=1) / rows[0, 1].norm()
    assert distance.max() < 0.15
    assert torch.cdist(of_many, of_many).fill_diagonal_(torch.inf).min() > 1
    parts = (-(weights * weights.log()).sum(dim=0)).exp()  # how many patches a cluster is made of
    assert (parts > 3).all()
    assert (parts < 40).all()


# Where it can be.


def test_stages_in_blocks_with_clusters_are_refused(make_vit: MakeViT) -> None:
    """By the number of the block, as people count."""
    for stages in (Stages((1, 2)), every_block(5), None):
        with pytest.raises(ValueError, match=r"attends? to clusters of patches \(PaCa\) and cannot prune"):
            PrunedViT(make_vit(paca=Paca((1, 2), 3)), stages)
    assert PrunedViT(make_vit(paca=Paca((1, 2), 3)), Stages((0, 3))).arch.paca == Paca((1, 2), 3)


@pytest.mark.parametrize(("blocks", "clusters"), [((), 3), ((2, 1), 3), ((1, 1), 3), ((-1,), 3), ((1,), 0)])
def test_what_is_no_attention_to_clusters_is_refused(blocks: tuple[int, ...], clusters: int) -> None:
    """Blocks that do not ascend, none of them, and no cluster."""
    with pytest.raises(ValueError, match="must be"):
        Paca(blocks, clusters)


def test_clusters_are_modules_of_their_blocks(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """Saved, copied and moved with the network; timm's own forward pass does not know them."""
    vit, pixels = make_vit(), make_pixels(2)
    before = vit(pixels)
    assert paca_of(tuple(vit.blocks)) is None
    add_clusters(tuple(vit.blocks), Paca((1, 3), 4), 66)
    assert paca_of(tuple(deepcopy(vit).blocks)) == Paca((1, 3), 4)
    assert clustering_of(vit.blocks[0]) is None
    assert {name for name in vit.state_dict() if ".clusters." in name} == {
        f"blocks.{block}.clusters.{name}"
        for block in (1, 3)
        for name in ("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "norm.weight", "norm.bias")
    }
    assert torch.equal(vit(pixels), before)
    with pytest.raises(ValueError, match="block 6 cannot attend to clusters: the network has 5"):
        add_clusters(tuple(vit.blocks), Paca((5,), 4), 66)


def test_the_reference_weighs_by_size(make_vit: MakeViT) -> None:
    """A token of two is clustered as two tokens are."""
    clustering = clustering_of(make_vit(paca=Paca((0,), 3)).double().blocks[0])
    rows = torch.randn(4, 66, generator=torch.Generator().manual_seed(1)).double()
    twice = reference_clusters(clustering, rows[[0, 1, 1, 2, 3]], torch.ones(5), 1)
    of_two = reference_clusters(clustering, rows, torch.tensor([1.0, 2, 1, 1]), 1)
    np.testing.assert_allclose(twice, of_two)
