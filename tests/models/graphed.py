"""What several tests ask of a model on a GPU, without one: few kernels, and graphs that answer as it does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.budget import budgets
from models.graphs import ASKED_BEFORE, GraphedModel
from models.pruned_vit import Output, PrunedViT
from models.schedule import Pruning
from tests.models.fake_capture import FakeCapture
from tests.models.fake_gpu import fake_gpu, fake_pixels, to_fake_gpu
from tests.models.varlen_reference import Reference, take_varlen


def assert_same(got: Output, wanted: Output) -> None:
    """The same patches, and the same numbers: another number of images may take another kernel."""
    torch.testing.assert_close(got.logits, wanted.logits, rtol=0, atol=2e-5)
    torch.testing.assert_close(got.pooled, wanted.pooled, rtol=0, atol=2e-5)
    assert [[image.tolist() for image in stage] for stage in got.kept] == [
        [image.tolist() for image in stage] for stage in wanted.kept
    ]


def launched(
    make_vit: Callable[..., VisionTransformer], prunings: list[Pruning], depth: int = 12, **arguments: Any
) -> tuple[int, int]:
    """Kernels of a forward pass of so many blocks, three of them stages, and copies from the host."""
    vit = make_vit(img_size=(64, 64), embed_dim=48, depth=depth, init_values=1e-5, **arguments)
    model = PrunedViT(vit)
    with fake_gpu() as watch:
        to_fake_gpu(model)
        model(fake_pixels(len(prunings), 64, 64), prunings)
    return watch.kernels.total(), watch.copies


def assert_graph_answers(model: PrunedViT, make_pixels: Callable[..., Tensor], pruning: Pruning) -> None:
    """As the model does, of images that are pruned alike."""
    capture = FakeCapture()
    graphed = GraphedModel(model, lambda: capture)
    for seed in range(ASKED_BEFORE + 2):
        pixels = make_pixels(3, seed=seed)
        assert_same(graphed(pixels, [pruning] * 3), model(pixels, [pruning] * 3))
    assert capture.replays == 2


def assert_ragged_graph_answers(
    model: PrunedViT, make_pixels: Callable[..., Tensor], patch: pytest.MonkeyPatch
) -> None:
    """As the model does, batch after batch, with fewer images than the graph has, and with longer ones after
    shorter ones."""
    capture = FakeCapture()
    asked = [[0.5, 0.3, 0.9], [1.0, 0.2], [0.4, 0.6, 0.5, 0.03, 0.7]]
    inputs = [make_pixels(len(ratios), seed=seed) for seed, ratios in enumerate(asked)]
    prunings = [[Pruning(ratio) for ratio in ratios] for ratios in asked]
    wanted = [model(pixels, own) for pixels, own in zip(inputs, prunings, strict=True)]
    patch.setattr("torch.nn.attention.varlen.varlen_attn", Reference().varlen_attn)
    take_varlen(patch)
    graphed = GraphedModel(model, lambda: capture)
    graphed.warm_up(make_pixels(1), "variance")
    got = [graphed(pixels, own) for pixels, own in zip(inputs, prunings, strict=True)]
    assert capture.captures == len(budgets(model.arch, model.stages))
    assert capture.replays == len(asked)
    for one, other in zip(got, wanted, strict=True):
        assert torch.isfinite(one.logits).all()
        assert_same(one, other)
