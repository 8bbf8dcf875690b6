"""The forward pass on a GPU: nothing in it waits for the device, and a dense one takes nothing from the host.

Where there is no GPU, the same is asked of PyTorch's fake tensors, which know devices but hold no numbers: an
operation that needs a number on the host, or tensors of two devices, cannot be computed with them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

import models.varlen
from models.classifier import Classifier, ImageRequest, normalise
from models.pruned_vit import PrunedViT
from models.ragged import on_device
from models.schedule import CRITERIA, REDUCERS, Pruning, Stages
from models.transforms import InputSpec

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]

SPEC = InputSpec((20, 28), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
HEADS_OF_8 = {"embed_dim": 48}

BATCHES = {
    "unpruned": [Pruning()] * 3,
    **{f"dense {name}": [Pruning(0.6, name)] * 3 for name in CRITERIA},
    **{f"dense {name}": [Pruning(0.6, reducer=name)] * 3 for name in REDUCERS},
    "one ratio, all criteria": [Pruning(0.6, criterion) for criterion in CRITERIA],
    "ragged": [
        Pruning(ratio, criterion)
        for ratio, criterion in zip((0.6, 1.0, 0.2, 0.6, 0.7, 0.5), CRITERIA, strict=True)
    ],
    "all reducers": [Pruning(ratio, reducer=name) for name in REDUCERS for ratio in (0.6, 0.3, 0.6)],
}
MODELS: dict[str, dict[str, Any]] = {
    "CLS": {},
    "average": {"class_token": False, "reg_tokens": 1, "global_pool": "avg"},
    "map": {"reg_tokens": 2, "global_pool": "map"},
}


class WaitsError(Exception):
    """The thread would have to wait for the device here."""


class Watch(TorchDispatchMode):
    """Refuses copies from host to device that wait, and counts the others."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0
        self._pinned: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        aten = torch.ops.aten
        if func is aten._pin_memory.default:
            self._pinned.append(args[0].clone())
            return self._pinned[-1]
        if func is aten.is_pinned.default:
            return any(args[0] is tensor for tensor in self._pinned)
        if func is aten._to_copy.default and args[0].device != kwargs.get("device", args[0].device):
            if not any(args[0] is tensor for tensor in self._pinned) or not kwargs.get("non_blocking"):
                raise WaitsError(f"a copy of {args[0]} to {kwargs['device']}")
            self.copies += 1
        if func is aten.copy_.default and args[0].device != args[1].device:
            raise WaitsError(f"a copy of {args[1]} into {args[0]}")
        return func(*args, **kwargs)


@contextmanager
def fake_gpu(capturing: bool = False) -> Iterator[Watch]:
    """A GPU of fake tensors, in which nothing waits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models.varlen, "built_for", lambda _device: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
        # In inference mode PyTorch shows `to`, not the copy that it is made of.
        with torch.no_grad(), FakeTensorMode(), Watch() as watch:
            yield watch


def to_fake_gpu(model: PrunedViT) -> None:
    """Give it fake parameters on the fake GPU, in bfloat16."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            fake = torch.empty(parameter.shape, dtype=torch.bfloat16, device="cuda")
            setattr(module, name, torch.nn.Parameter(fake, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda"))


def fake_pixels(images: int) -> Tensor:
    return torch.empty(images, 3, 20, 28, dtype=torch.bfloat16, device="cuda")


# The watch itself: what it must not let pass.


@pytest.mark.parametrize(
    "waits",
    [
        lambda rows: rows[0].item(),
        lambda rows: rows.tolist(),
        lambda rows: rows[rows > 0],
        lambda rows: rows.nonzero(),
        lambda rows: bool(rows.any()),
        lambda rows: rows.cpu(),
        lambda rows: torch.tensor([1, 2], device=rows.device),
        lambda rows: torch.tensor([1, 2]).to(rows.device, non_blocking=True),
        lambda rows: torch.tensor([1, 2]).pin_memory().to(rows.device),
        lambda rows: rows + torch.ones(4),
        lambda rows: rows.index_select(0, torch.tensor([1, 2])),
    ],
    ids=range(11),
)
def test_the_watch_sees_what_waits(waits: Callable[[Tensor], object]) -> None:
    """Numbers asked for, shapes that hang on numbers, copies not pinned, tensors left on the host."""
    with (
        fake_gpu(),
        pytest.raises((WaitsError, DataDependentOutputException, DynamicOutputShapeException, RuntimeError)),
    ):
        waits(torch.empty(4, device="cuda"))


def test_the_watch_lets_the_one_way_pass() -> None:
    """Numbers by on_device are on the device, without waiting."""
    device = torch.device("cuda:0")
    with fake_gpu() as watch:
        assert on_device([1, 2, 3], device).device == device
        assert on_device(np.arange(3), device).device == device
    assert watch.copies == 2


def test_the_hosts_numbers_are_kept_out_of_graphs() -> None:
    """While a graph is captured, on_device refuses: a replay would copy from memory that was given back."""
    with fake_gpu(capturing=True), pytest.raises(RuntimeError, match="cannot be part of a CUDA graph"):
        on_device([1, 2, 3], torch.device("cuda:0"))


# The forward pass.


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("arguments", MODELS)
def test_nothing_waits_in_a_forward_pass(make_vit: MakeViT, arguments: str, batch: str) -> None:
    """From pixels to logits, under every criterion and reducer, dense and ragged."""
    model, prunings = PrunedViT(make_vit(**HEADS_OF_8, **MODELS[arguments])), BATCHES[batch]
    with fake_gpu():
        to_fake_gpu(model)
        output = model(fake_pixels(len(prunings)), prunings)
        assert (output.logits.device.type, output.logits.shape) == ("cuda", (len(prunings), 13))


@pytest.mark.parametrize("rows", ["cls", "all"])
@pytest.mark.parametrize("pruning", [Pruning(), *(Pruning(0.6, reducer=name) for name in REDUCERS)], ids=str)
def test_a_dense_pass_takes_nothing_from_the_host(make_vit: MakeViT, pruning: Pruning, rows: Any) -> None:
    """With one pruning for all, places are counted on the device: what a CUDA graph needs."""
    model = PrunedViT(make_vit(**HEADS_OF_8), Stages((1, 2, 3), rows))
    with fake_gpu(capturing=True) as watch:
        to_fake_gpu(model)
        model(fake_pixels(3), [pruning] * 3)
    assert watch.copies == 0


def test_keep_mass_alone_asks_the_device(make_vit: MakeViT) -> None:
    """Its counts hang on the image: the one place where the host waits, as the design says."""
    model = PrunedViT(make_vit(**HEADS_OF_8))
    with fake_gpu():
        to_fake_gpu(model)
        with pytest.raises(DataDependentOutputException):
            model(fake_pixels(2), [Pruning(keep_mass=0.5)] * 2)


def test_pixels_are_normalised_on_the_device() -> None:
    """Raw bytes go there by a pinned copy, and mean and deviation do not wait either."""
    with fake_gpu():
        pixels = on_device(torch.empty(2, 20, 28, 3, dtype=torch.uint8), torch.device("cuda:0"))
        inputs = normalise(pixels, SPEC, torch.bfloat16)
        assert (inputs.device.type, inputs.dtype, inputs.shape) == ("cuda", torch.bfloat16, (2, 3, 20, 28))


# On a GPU.

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("arguments", MODELS)
def test_on_a_gpu_nothing_waits_in_a_forward_pass(
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


@needs_gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_on_a_gpu_the_classifier_answers_as_on_the_cpu(
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
