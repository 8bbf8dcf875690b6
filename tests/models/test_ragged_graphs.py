"""Graphs of ragged batches: captured at the warm-up, and another batch's tables give that batch's answers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.budget import budgets
from models.graphs import GraphedModel
from models.pruned_vit import PrunedViT
from models.schedule import Criterion, Pruning, Stages
from tests.models.fake_capture import FakeCapture
from tests.models.fake_gpu import fake_gpu, to_fake_gpu
from tests.models.graphed import assert_same
from tests.models.varlen_reference import Reference, take_varlen
from tests.support.examples import examples

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]

# Shapes are those of the model without graphs, of which others check them.
pytestmark = pytest.mark.usefixtures("inference", "without_shape_checks")

# Eight values a head, the least that the kernel takes.
VARIANTS: dict[str, tuple[dict[str, Any], Any]] = {
    "CLS": ({"embed_dim": 48}, "cls"),
    "lives": ({"embed_dim": 48, "life": 1}, "cls"),
    "registers, LayerScale, norms": (
        {"embed_dim": 48, "reg_tokens": 2, "init_values": 0.1, "qk_norm": True},
        "all",
    ),
}

ratios = st.sampled_from([1.0, 0.7, 0.5, 0.03]) | st.floats(0.01, 1)
some_batches = st.lists(ratios, min_size=2, max_size=9)


def warmed(
    patch: pytest.MonkeyPatch,
    model: PrunedViT,
    like: Tensor,
    capture: FakeCapture,
    criterion: Criterion = "variance",
) -> GraphedModel:
    """On the CPU, with the slow kernel."""
    patch.setattr("torch.nn.attention.varlen.varlen_attn", Reference().varlen_attn)
    take_varlen(patch)
    graphed = GraphedModel(model, lambda: capture)
    graphed.warm_up(like, criterion)
    return graphed


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=examples(4))
@given(batches=st.lists(some_batches, min_size=1, max_size=3))
def test_a_replay_answers_as_the_model(
    make_vit: MakeViT, make_pixels: MakePixels, variant: str, batches: list[list[float]]
) -> None:
    """Batch after batch, whatever was computed before and however many images there are, with the same logits
    and the same patches."""
    arguments, rows = VARIANTS[variant]
    criterion: Criterion = "life" if variant == "lives" else "variance"
    model = PrunedViT(make_vit(**arguments), Stages((1, 2, 3), rows))
    capture = FakeCapture()
    asked = [
        (make_pixels(len(own), seed=seed), [Pruning(ratio, criterion) for ratio in own])
        for seed, own in enumerate(batches)
    ]
    with torch.inference_mode():
        wanted = [model(pixels, prunings) for pixels, prunings in asked]
        with pytest.MonkeyPatch.context() as patch:
            graphed = warmed(patch, model, make_pixels(1), capture, criterion)
            captures = capture.captures
            got = [graphed(pixels, prunings) for pixels, prunings in asked]
    assert captures == capture.captures == len(budgets(model.arch, model.stages))
    ragged = [own for own in batches if len(set(own)) > 1]
    assert capture.replays == len(ragged)
    # Compared only now: an answer must outlast the replays that come after it.
    for one, other in zip(got, wanted, strict=True):
        assert_same(one, other)


def test_the_largest_is_captured_first_and_the_smallest_that_fits_is_replayed(
    make_vit: MakeViT, make_pixels: MakePixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Smaller graphs use the larger ones' memory; a batch pays for no more than it must."""
    model, capture = PrunedViT(make_vit(embed_dim=48)), FakeCapture()
    graphed = warmed(monkeypatch, model, make_pixels(1), capture)
    assert [images for images, *_ in capture.shapes] == sorted(
        [images for images in (2, 4, 8, 16, 32) for _ in range(3)], reverse=True
    )
    for images, taken in ((2, 2), (3, 4), (4, 4), (5, 8), (9, 16)):
        prunings = [Pruning(0.4 - 0.01 * image) for image in range(images)]
        graphed(make_pixels(images), prunings)
        assert capture.replayed[-1][0] == taken


@pytest.mark.parametrize(
    "prunings",
    [
        [Pruning(0.5), Pruning(0.6, "mad")],
        [Pruning(0.5, "mad"), Pruning(0.6, "mad")],
        [Pruning(0.5), Pruning(0.6, reducer="fuse")],
        [Pruning(0.5), Pruning(keep_mass=0.5)],
        [Pruning(1 / image) for image in range(1, 34)],
    ],
    ids=["criteria", "another criterion", "reducers", "keep_mass", "many"],
)
def test_all_else_goes_to_the_model(
    make_vit: MakeViT, make_pixels: MakePixels, monkeypatch: pytest.MonkeyPatch, prunings: list[Pruning]
) -> None:
    """What a graph could not compute, or was not captured for."""
    model, capture = PrunedViT(make_vit(embed_dim=48)), FakeCapture()
    wanted = model(make_pixels(len(prunings)), prunings)
    graphed = warmed(monkeypatch, model, make_pixels(1), capture)
    assert_same(graphed(make_pixels(len(prunings)), prunings), wanted)
    assert capture.replays == 0


@pytest.mark.parametrize(
    "arguments",
    [{"class_token": False, "reg_tokens": 1, "global_pool": "avg"}, {"global_pool": "map"}],
    ids=str,
)
def test_a_head_that_reads_patches_has_no_graphs(
    make_vit: MakeViT, make_pixels: MakePixels, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]
) -> None:
    """It goes image by image, so no list of kernels would do for all batches."""
    capture = FakeCapture()
    warmed(monkeypatch, PrunedViT(make_vit(embed_dim=48, **arguments)), make_pixels(1), capture)
    assert capture.captures == 0


def test_without_the_kernel_there_are_no_graphs(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """Attention would go length by length."""
    model, capture = PrunedViT(make_vit()), FakeCapture()
    graphed = GraphedModel(model, lambda: capture)
    graphed.warm_up(make_pixels(1), "variance")
    prunings = [Pruning(0.5), Pruning(0.6)]
    assert_same(graphed(make_pixels(2), prunings), model(make_pixels(2), prunings))
    assert (capture.captures, capture.replays) == (0, 0)


def test_a_failed_capture_is_told_and_ends_the_warm_up(
    make_vit: MakeViT,
    make_pixels: MakePixels,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Batches are computed eagerly then."""
    model, capture = PrunedViT(make_vit(embed_dim=48)), FakeCapture(fails=True)
    graphed = warmed(monkeypatch, model, make_pixels(1), capture)
    assert capture.captures == 1
    assert "cannot capture a CUDA graph of Budget(images=32" in caplog.text
    assert graphed(make_pixels(2), [Pruning(0.5), Pruning(0.6)]).logits.shape == (2, 13)


def test_a_pass_that_is_captured_takes_nothing_from_the_host(make_vit: MakeViT) -> None:
    """On a fake GPU: nothing waits, nothing is copied, and few kernels more than for like images."""
    model = PrunedViT(make_vit(embed_dim=48, depth=12))
    counted: list[tuple[int, int]] = []
    with torch.inference_mode(mode=False), fake_gpu() as watch:
        to_fake_gpu(model)

        def capture(forward: Callable[[], tuple[Tensor, ...]]) -> Any:
            watch.copies = 0
            watch.kernels.clear()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
                tables = forward()
            counted.append((watch.copies, watch.kernels.total()))
            return (lambda: None), tables

        graphed = GraphedModel(model, lambda: capture)
        pixels = torch.empty(1, 3, 20, 28, dtype=torch.bfloat16, device="cuda")
        graphed.warm_up(pixels, "variance")
        watch.kernels.clear()
        model(pixels.expand(4, -1, -1, -1), [Pruning(0.5)] * 4)
        dense = watch.kernels.total()
    assert len(counted) == len(budgets(model.arch, model.stages))
    assert len(set(counted)) == 1
    copies, kernels = counted[0]
    assert copies == 0
    assert kernels <= 1.2 * dense, (kernels, dense)
