"""What runs against what: the same network as timm computes it and as PrunedViT does, one batch a call."""

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
from models.pruned_vit import PrunedViT, Pruning

Ratios = Sequence[float]

_RANDOM = "random:"


def load_model(reference: str) -> LoadedModel:
    """What `trimvit serve` takes, or `random:NAME`: a timm architecture with random weights, from nowhere.

    Raises what models.load.load raises.
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
    """A copy of the model, converted as the server does it."""
    return Classifier(deepcopy(loaded.model), loaded.input, device, choose_dtype(device, dtype)).model


def plain_vit(loaded: LoadedModel, dtype: DtypeName, device: str = "cpu") -> VisionTransformer:
    """A copy of timm's own module. Raises ValueError where timm's fused attention is turned off."""
    vit = deepcopy(loaded.model.vit).to(device, input_dtype(device, choose_dtype(device, dtype))).eval()
    if not all(block.attn.fused_attn for block in vit.blocks):
        raise ValueError(
            "timm's fused attention is off, so it would be slower than it is; see TIMM_FUSED_ATTN"
        )
    return vit


def batches_of(pixels: Tensor, size: int) -> list[Tensor]:
    """As many whole batches as there are, as views."""
    return list(pixels[: len(pixels) // size * size].split(size))


def unpruned(vit: Callable[[Tensor], Tensor], batches: Sequence[Tensor]) -> Contestant:
    """timm's own forward pass."""

    @torch.inference_mode()
    def run(turn: int) -> Tensor:
        return vit(batches[turn % len(batches)])

    return Contestant(len(batches[0]), run)


def on_timms_kernels(contestant: Contestant) -> Contestant:
    """With the attention kernels that PyTorch offers, as timm is used elsewhere: our worker does without
    cuDNN's (`models.device.use_gpu`)."""

    def run(turn: int) -> object:
        ours = torch.backends.cuda.cudnn_sdp_enabled()
        torch.backends.cuda.enable_cudnn_sdp(True)  # noqa: FBT003
        try:
            return contestant.run(turn)
        finally:
            torch.backends.cuda.enable_cudnn_sdp(ours)

    return replace(contestant, run=run)


def finisher(device: str) -> Callable[[], object]:
    """What waits until the device has computed all that it was given."""
    return partial(torch.cuda.synchronize, device) if device != "cpu" else lambda: None


def pruned(model: PrunedViT, batches: Sequence[Tensor], ratio: float) -> Contestant:
    """Ours, with one keep ratio for all images."""
    ratios = [ratio] * len(batches[0])
    return pruned_mixed(model, batches, lambda _: ratios)


def pruned_mixed(model: PrunedViT, batches: Sequence[Tensor], ratios: Callable[[int], Ratios]) -> Contestant:
    """Ours, with a keep ratio for each image of a batch; they are asked for by turn."""

    @torch.inference_mode()
    def run(turn: int) -> Tensor:
        prunings = [Pruning(ratio) for ratio in ratios(turn)]
        return model(batches[turn % len(batches)], prunings).logits

    return Contestant(len(batches[0]), run)


def repeated(contestant: Contestant, calls: int) -> Contestant:
    """So many batches a call, one after another."""

    def run(turn: int) -> None:
        for call in range(calls):
            contestant.run(turn * calls + call)

    return Contestant(contestant.images * calls, run)


def in_streams(contestant: Contestant, streams: ThreadPoolExecutor, calls: int) -> Contestant:
    """So many batches a call, shared out to the threads of a pool."""

    def run(turn: int) -> None:
        list(streams.map(contestant.run, range(turn * calls, (turn + 1) * calls)))

    return Contestant(contestant.images * calls, run)


def on_threads(contestant: Contestant, threads: int) -> Contestant:
    """On so many intra-op threads of the calling thread."""

    def run(turn: int) -> object:
        torch.set_num_threads(threads)
        return contestant.run(turn)

    return replace(contestant, run=run)


def stream_pool(streams: int, threads: int) -> ThreadPoolExecutor:
    """``streams`` threads that share ``threads`` intra-op threads evenly, as a worker's compute threads do
    (docs/design/0003)."""
    each = max(1, threads // streams)
    # OpenMP keeps the number per calling thread.
    return ThreadPoolExecutor(streams, "stream", initializer=torch.set_num_threads, initargs=(each,))
