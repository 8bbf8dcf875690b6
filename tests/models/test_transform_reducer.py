"""Token transforming, the reducer `transform`: its weights and sizes, what it reads, and what it costs.

That logits and gradients are right, alone and in any batch, is asked where all reducers are
(test_pruned_vit.py, test_ragged.py, test_planning.py), as is that a GPU need not wait (test_cuda.py).
"""

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import models.reducers
from models.classifier import Classifier
from models.load import input_spec_of, load
from models.pruned_vit import PrunedViT
from models.reducer_macs import KEY_WIDTH, transform_macs
from models.reducers import TEMPERATURE, transform
from models.schedule import (
    UNPRUNED,
    Architecture,
    Pruning,
    Stages,
    compute,
    default_stages,
    keep_ratio_for,
    macs,
)
from models.training.fine_tune import fine_tune
from tests.models.training.small_runs import Run, pictures, run_with, start

__all__ = ["pictures", "run_with", "start"]  # fixtures

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]

STAGES = Stages((1, 3))
DEIT_SMALL = Architecture(
    depth=12, dim=384, mlp_dim=1536, grid=(14, 14), prefix_tokens=1, patch_inputs=768, classes=1000
)


def with_cosine(cosine: float) -> list[float]:
    return [cosine, math.sqrt(1 - cosine**2)]


# One table.


def test_transforming_by_hand() -> None:
    """Three patches, of which the first and the last are kept. The middle one is as like the first as gives
    it the weight e^-1 there, and stands for two; it is not at all like the last, which remains what it was.
    All of it counts for the first."""
    patches, sizes = torch.tensor([[[1.0], [10.0], [100.0]]]), torch.tensor([[1.0, 2.0, 1.0]])
    keys = torch.tensor([[[1.0, 0.0], with_cosine(1 - TEMPERATURE), [-3.0, 0.0]]])
    tokens, left = transform(patches, keys, sizes, torch.tensor([[0, 2]]))
    near = math.exp(-1)
    wanted = torch.tensor([[[(1 + 2 * near * 10) / (1 + 2 * near)], [100.0]]])
    torch.testing.assert_close(tokens, wanted, rtol=1e-3, atol=0)
    torch.testing.assert_close(left, torch.tensor([[3.0, 1.0]]))


def test_a_patch_is_divided_as_it_is_weighed() -> None:
    """Of two tokens that it is equally like, it has more weight in the smaller one, which stands for more of
    it."""
    keys = torch.tensor([[[1.0, 0.0], with_cosine(math.sqrt(0.5)), [0.0, 1.0]]])
    _, left = transform(torch.randn(1, 3, 4), keys, torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[0, 2]]))
    # 3 are divided by the weights that they have in both tokens, which are means of 1 + w and of 2 + w.
    weight = 3 * math.exp((math.sqrt(0.5) - 1) / TEMPERATURE)
    first, second = 1 / (1 + weight), 1 / (2 + weight)
    share = first / (first + second)
    torch.testing.assert_close(left, torch.tensor([[1 + 3 * share, 2 + 3 * (1 - share)]]), rtol=0, atol=1e-4)


@given(data=st.data())
def test_sizes_are_those_of_the_patches_there_were(data: st.DataObject) -> None:
    """However few tokens are left, they stand for all patches together, and lie between the patches."""
    images, patches = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40))
    count = data.draw(st.integers(1, patches))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    values, keys = (torch.randn(images, patches, width, generator=generator) for width in (3, 4))
    sizes = torch.rand(images, patches, generator=generator) + 0.5
    kept = torch.randperm(patches, generator=generator)[:count].sort().values.expand(images, -1)
    tokens, left = transform(values, keys, sizes, kept)
    assert tokens.shape == (images, count, 3)
    torch.testing.assert_close(left.sum(dim=1), sizes.sum(dim=1), rtol=1e-3, atol=1e-3 * patches)
    assert (tokens <= values.amax(dim=1, keepdim=True) + 1e-5).all()
    assert (tokens >= values.amin(dim=1, keepdim=True) - 1e-5).all()


def test_the_sharpest_weights_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smaller the temperature, the more a token is the patch that it starts from."""
    values, keys = torch.randn(2, 12, 5), torch.randn(2, 12, 6)
    kept = torch.tensor([[0, 3, 7], [2, 3, 11]])
    monkeypatch.setattr(models.reducers, "TEMPERATURE", 1e-6)
    tokens, _ = transform(values, keys, torch.ones(2, 12), kept)
    torch.testing.assert_close(tokens, torch.take_along_dim(values, kept.unsqueeze(2), dim=1))


# In a network.


def test_at_ratio_1_nothing_changes(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """No weight is computed: the bits are those of the unpruned model."""
    model, pixels = PrunedViT(make_vit(), STAGES), make_pixels(2)
    with torch.inference_mode():
        wanted = model(pixels, [UNPRUNED] * 2).logits
        assert torch.equal(model(pixels, [Pruning(1.0, reducer="transform")] * 2).logits, wanted)


def test_it_keeps_the_patches_that_drop_keeps(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """At the first stage, by every criterion that differs; later ones see other tokens. Logits differ."""
    model, pixels = PrunedViT(make_vit(), STAGES), make_pixels(2)
    with torch.inference_mode():
        for criterion in ("variance", "mean", "random"):
            dropped, transformed = (
                model(pixels, [Pruning(0.5, criterion, name)] * 2) for name in ("drop", "transform")
            )
            for one, other in zip(dropped.kept[0], transformed.kept[0], strict=True):
                assert one.tolist() == other.tolist()
            assert transformed.kept.counts.tolist() == [[18, 18], [9, 9]]
            assert not torch.allclose(dropped.logits, transformed.logits, atol=1e-3)


def test_keep_mass_chooses_the_ratio(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """As for `drop`, whose first stage is the same; in one batch with images that fuse."""
    model, pixels = PrunedViT(make_vit(), STAGES), make_pixels(3)
    asked = [Pruning(keep_mass=0.6, reducer=name) for name in ("drop", "fuse", "transform")]
    with torch.inference_mode():
        dropped = model(pixels[[2, 2, 2]], asked).kept.counts
        assert dropped[:, 0].tolist() == dropped[:, 1].tolist() == dropped[:, 2].tolist()
        together = model(pixels, asked)
        alone = model(pixels[2:], asked[2:])
    assert 1 < together.kept.counts[0, 2] < 35
    torch.testing.assert_close(together.logits[2:], alone.logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_low_precision_is_near_float32(
    make_vit: MakeViT, make_pixels: MakePixels, dtype: torch.dtype
) -> None:
    """Weights and sizes are computed in float32. Under `random`, which rounding does not change."""
    vit, pixels = make_vit(), make_pixels(3)
    prunings = [Pruning(ratio, "random", "transform") for ratio in (0.7, 0.5, 0.5)]
    with torch.inference_mode():
        wanted = PrunedViT(deepcopy(vit), STAGES)(pixels, prunings).logits
        classifier = Classifier(PrunedViT(vit, STAGES), input_spec_of(vit), "cpu", dtype)
        own = pixels.to(next(vit.parameters()).dtype)
        got = classifier.model(own, prunings).logits.float()
    assert ((got - wanted).norm() / wanted.norm()).item() <= 0.1


def test_a_network_is_trained_with_it(run_with: Callable[..., Run], tmp_path: Path) -> None:
    """It is then what the checkpoint prunes by."""
    run = run_with(stages=(2, 5), reducers=("transform", "drop"), max_keep_ratio=0.8)
    loaded = load(str(fine_tune(run(tmp_path)).checkpoint))
    assert (loaded.method.reducer, loaded.method.name) == ("transform", "variance+transform")
    assert "transform" in loaded.model.reducers


# What it costs.


@pytest.mark.parametrize("keep_ratio", [1.0, 0.6])
def test_macs_are_those_that_are_computed(
    make_vit: MakeViT, make_pixels: MakePixels, keep_ratio: float
) -> None:
    """As PyTorch counts them for heads of the usual width, but for the products that divide sizes."""
    vit = make_vit(embed_dim=2 * KEY_WIDTH, num_heads=2)
    for block in vit.blocks:
        block.attn.fused_attn = False  # of which PyTorch counts nothing on a CPU
    model = PrunedViT(vit, STAGES)
    # Under `random` no stage computes anything to decide.
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(make_pixels(2), [Pruning(keep_ratio, "random", "transform")] * 2)
    counts = STAGES.keep_counts(35, keep_ratio)
    of_sizes = 35 * counts[0] + counts[0] * counts[1] if keep_ratio < 1 else 0
    assert counter.get_total_flops() == 2 * 2 * (macs(model.arch, STAGES, counts, "transform") + of_sizes)


def test_cost_by_hand() -> None:
    """Of DeiT-S: products and means of three stages; a ratio that keeps all costs nothing more."""
    stages = default_stages(12)
    counts = stages.keep_counts(196, 0.7)
    assert counts == (138, 97, 68)
    more = macs(DEIT_SMALL, stages, counts, "transform") - macs(DEIT_SMALL, stages, counts)
    assert more == sum(transform_macs(384, *pair) for pair in ((196, 138), (138, 97), (97, 68)))
    assert transform_macs(384, 196, 138) == 196 * 138 * (64 + 384)
    assert compute(DEIT_SMALL, stages, 1.0, "transform") == 1.0
    assert compute(DEIT_SMALL, stages, 0.997, "transform") == 1.0  # which keeps all
    assert compute(DEIT_SMALL, stages, 0.99, "transform") < compute(DEIT_SMALL, stages, 0.99, "pool")


@given(share=st.floats(0.45, 1))
def test_the_ratio_of_a_cost_is_the_largest(share: float) -> None:
    """As for every reducer."""
    stages = default_stages(12)
    ratio = keep_ratio_for(DEIT_SMALL, stages, share, "transform")
    assert compute(DEIT_SMALL, stages, ratio, "transform") <= share
    assert ratio == 1 or compute(DEIT_SMALL, stages, round(ratio + 1e-4, 4), "transform") > share
