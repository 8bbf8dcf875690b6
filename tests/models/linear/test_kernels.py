"""Kernels made ahead: no batch that is pruned brings a number of rows that layers have not seen."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.classifier import Classifier
from models.linear.packed import can_pack
from models.pruned_vit import PrunedViT
from models.schedule import REDUCERS, Pruning
from models.transforms import InputSpec

SPEC = InputSpec((20, 28), (0.5, 0.5, 0.5), (0.3, 0.3, 0.3), "bicubic", "center", 1.0)


class Layers(TorchDispatchMode):
    """Collects what linear layers computed: their rows, inputs and outputs, and what follows them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, int, int, str]] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket is torch.ops.mkldnn._linear_pointwise:
            x, weight, _, then, *_ = args
            self.seen.add((x.numel() // x.shape[-1], x.shape[-1], weight.shape[0], then))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def classifier(make_vit: Callable[..., VisionTransformer]) -> Classifier:
    """In bfloat16, with packed layers."""
    if not can_pack(torch.bfloat16):
        pytest.skip("this CPU does not compute in bfloat16")
    return Classifier(PrunedViT(make_vit(pool=True)), SPEC, "cpu", torch.bfloat16)


def made(classifier: Classifier, most_rows: int, enough_s: float = 60.0) -> set[tuple[int, int, int, str]]:
    with Layers() as layers:
        classifier.make_kernels(most_rows, enough_s)
    return layers.seen


def test_batches_find_their_kernels(classifier: Classifier, make_pixels: Callable[..., Tensor]) -> None:
    """All but those for a number of images, from one that is not pruned yet to the head."""
    images, model = 8, classifier.model
    tokens = model.arch.prefix_tokens + model.arch.patches
    there = made(classifier, images * tokens)
    draw = random.Random(0)
    pixels = make_pixels(images).bfloat16()
    with torch.inference_mode(), Layers() as layers:
        for _ in range(20):
            count = draw.randint(1, images)
            model(
                pixels[:count],
                [Pruning(draw.uniform(0.1, 0.9), reducer=draw.choice(REDUCERS)) for _ in range(count)],
            )
    of_images = {rows * each for rows in range(1, images + 1) for each in (1, model.arch.patches, tokens)}
    pruned = {layer for layer in layers.seen if layer[0] not in of_images}
    assert len(pruned) > 50
    assert pruned <= there, sorted(pruned - there)


def test_up_to_so_many_rows(classifier: Classifier) -> None:
    """Each number once, and none where there is no time."""
    assert {rows for rows, *_ in made(classifier, 21)} == {4, 8, 12, 16, 20}
    assert not made(classifier, 21, enough_s=0.0)


def test_float32_needs_none(classifier: Classifier) -> None:
    """Its kernels serve all shapes."""
    classifier.model.float()
    assert not made(classifier, 21)
