"""The forward pass and the classifier on a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import models.attend.choice
from models.attend.varlen import takes_varlen
from models.classifier import Classifier, ImageRequest
from models.pruned_vit import PrunedViT
from models.schedule import Pruning
from tests.models.cuda_batches import BATCHES, HEADS_OF_8, MODELS, SPEC

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]

pytestmark = pytest.mark.gpu


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("arguments", MODELS)
def test_nothing_waits_in_a_forward_pass(
    make_vit: MakeViT, make_pixels: MakePixels, arguments: str, batch: str
) -> None:
    """PyTorch itself sees no wait, once libraries are loaded."""
    model, prunings = (
        PrunedViT(make_vit(**HEADS_OF_8, **MODELS[arguments])).to("cuda", torch.bfloat16),
        BATCHES[batch],
    )
    pixels = make_pixels(len(prunings)).to("cuda", torch.bfloat16)
    with torch.inference_mode():
        model(pixels, prunings)
        with no_waiting():
            model.finish(model.begin(pixels), prunings)


@pytest.mark.parametrize("graphs", [False, True])
def test_the_classifier_answers_as_on_the_cpu(
    make_vit: MakeViT, graphs: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """In float32, dense and ragged, eagerly and, from the fourth time on, from a graph."""
    generator = torch.Generator().manual_seed(0)
    on_cpu = Classifier(PrunedViT(make_vit()), SPEC, "cpu", torch.float32)
    on_gpu = Classifier(PrunedViT(make_vit()), SPEC, "cuda:0", torch.float32, graphs=graphs)
    with torch.cuda.stream(torch.cuda.Stream()):
        for ratios in [(0.6, 0.6, 0.6)] * 6 + [(0.6, 0.6), (1.0, 0.3, 0.6)]:
            pixels = torch.randint(0, 256, (len(ratios), 20, 28, 3), dtype=torch.uint8, generator=generator)
            requests = [ImageRequest(Pruning(ratio), kept_patches=True) for ratio in ratios]
            wanted, got = on_cpu.classify(pixels, requests), on_gpu.classify(pixels, requests)
            for mine, theirs in zip(got, wanted, strict=True):
                # The GPU's convolution rounds its inputs to ten bits (TF32).
                np.testing.assert_allclose(mine.scores, theirs.scores, atol=0.02)
                assert mine.kept_counts == theirs.kept_counts
    assert not caplog.records  # a capture that fails is logged, and its answers are right all the same


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_call_gives_what_the_runs_give(
    make_vit: MakeViT, make_pixels: MakePixels, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """PyTorch's own kernel, queries shorter than keys and not: the runs' logits, to rounding."""
    model = PrunedViT(make_vit(**HEADS_OF_8)).to("cuda", dtype)
    pixels = make_pixels(5).to("cuda", dtype)
    # `random` keeps the same patches however the rounding went.
    prunings = [Pruning(ratio, "random") for ratio in (1.0, 0.7, 0.7, 0.5, 0.03)]
    with torch.inference_mode():
        assert takes_varlen(model.vit.blocks[0].attn, pixels), "it needs PyTorch 2.10 and capability 8.0"
        once = model(pixels, prunings)
        monkeypatch.setattr(models.attend.choice, "takes_varlen", lambda _attn, _rows: False)
        runs = model(pixels, prunings)
    torch.testing.assert_close(once.logits, runs.logits, rtol=0, atol=0.25)
