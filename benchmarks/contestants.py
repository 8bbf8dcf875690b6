"""Contestants for the speed benchmarks: the same network run by timm and by PrunedViT, one batch per call."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from functools import partial

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from benchmarks.rounds import Contestant
from models.classifier import Classifier
from models.device import choose_dtype, input_dtype
from models.dtypes import DtypeName
from models.load import Card, LoadedModel, input_spec_of, load
from models.pruned_vit import PrunedViT
from models.schedule import Method

Ratios = Sequence[float]

_RANDOM = "random:"


def load_model(reference: str) -> LoadedModel:
    """Load a model by any reference that `trimvit serve` accepts, or by `random:NAME`: a timm architecture
    with random weights, without a download. Raises as models.load.load does.
    """
    if not reference.startswith(_RANDOM):
        return load(reference)
    torch.manual_seed(0)
    vit = timm.create_model(reference.removeprefix(_RANDOM), pretrained=False, dynamic_img_size=False).eval()
    labels = tuple(f"class {index}" for index in range(vit.num_classes))
    model = PrunedViT(vit)
    return LoadedModel(
        reference, model, Card(reference.removeprefix(_RANDOM), labels, input_spec_of(vit), model.stages)
    )


def in_dtype(loaded: LoadedModel, dtype: DtypeName, device: str = "cpu") -> PrunedViT:
    """Return a copy of the model, converted as in the server."""
    return Classifier(deepcopy(loaded.model), loaded.input, device, choose_dtype(device, dtype)).model


def plain_vit(loaded: LoadedModel, dtype: DtypeName, device: str = "cpu") -> VisionTransformer:
    """Return a copy of timm's module. Raises ValueError if timm's fused attention is disabled."""
    vit = deepcopy(loaded.model.vit).to(device, input_dtype(device, choose_dtype(device, dtype))).eval()
    if not all(block.attn.fused_attn for block in vit.blocks):
        raise ValueError(
            "timm's fused attention is off, so it would be slower than it is; see TIMM_FUSED_ATTN"
        )
    return vit


def batches_of(pixels: Tensor, size: int) -> list[Tensor]:
    """Split the pixels into complete batches (views); the rest is dropped."""
    return list(pixels[: len(pixels) // size * size].split(size))


def unpruned(vit: Callable[[Tensor], Tensor], batches: Sequence[Tensor]) -> Contestant:
    """Contestant: timm's forward pass."""

    @torch.inference_mode()
    def run(turn: int) -> Tensor:
        return vit(batches[turn % len(batches)])

    return Contestant(len(batches[0]), run)


def on_timms_kernels(contestant: Contestant) -> Contestant:
    """Run a contestant with all of PyTorch's attention kernels, as timm users do. Our worker disables cuDNN's
    (`models.device.use_gpu`)."""

    def run(turn: int) -> object:
        ours = torch.backends.cuda.cudnn_sdp_enabled()
        torch.backends.cuda.enable_cudnn_sdp(True)  # noqa: FBT003
        try:
            return contestant.run(turn)
        finally:
            torch.backends.cuda.enable_cudnn_sdp(ours)

    return replace(contestant, run=run)


def finisher(device: str) -> Callable[[], object]:
    """Return a function that waits until the device has finished its work."""
    return partial(torch.cuda.synchronize, device) if device != "cpu" else lambda: None


def pruned(model: PrunedViT, method: Method, batches: Sequence[Tensor], ratio: float) -> Contestant:
    """Contestant: our model with one keep ratio for all images."""
    ratios = [ratio] * len(batches[0])
    return pruned_mixed(model, method, batches, lambda _: ratios)


def pruned_mixed(
    model: PrunedViT, method: Method, batches: Sequence[Tensor], ratios: Callable[[int], Ratios]
) -> Contestant:
    """Contestant: our model with a keep ratio per image. ``ratios(turn)`` returns those of a batch."""

    @torch.inference_mode()
    def run(turn: int) -> Tensor:
        prunings = [method.pruning(ratio) for ratio in ratios(turn)]
        return model(batches[turn % len(batches)], prunings).logits

    return Contestant(len(batches[0]), run)


def repeated(contestant: Contestant, calls: int) -> Contestant:
    """Run ``calls`` batches per call, one after another."""

    def run(turn: int) -> None:
        for call in range(calls):
            contestant.run(turn * calls + call)

    return Contestant(contestant.images * calls, run)


def in_streams(contestant: Contestant, streams: ThreadPoolExecutor, calls: int) -> Contestant:
    """Run ``calls`` batches per call, distributed over the threads of a pool."""

    def run(turn: int) -> None:
        list(streams.map(contestant.run, range(turn * calls, (turn + 1) * calls)))

    return Contestant(contestant.images * calls, run)


def on_threads(contestant: Contestant, threads: int) -> Contestant:
    """Run a contestant with this number of intra-op threads."""

    def run(turn: int) -> object:
        torch.set_num_threads(threads)
        return contestant.run(turn)

    return replace(contestant, run=run)


def stream_pool(streams: int, threads: int) -> ThreadPoolExecutor:
    """Create a pool of ``streams`` threads that divide ``threads`` intra-op threads evenly, like a worker's
    compute threads (docs/design/0003)."""
    each = max(1, threads // streams)
    # OpenMP stores the number of threads per calling thread.
    return ThreadPoolExecutor(streams, "stream", initializer=torch.set_num_threads, initargs=(each,))
