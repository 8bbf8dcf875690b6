"""Images and one request each -> predictions. The one place where pixels, model and labels meet."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from models.pruned_vit import PrunedViT, Pruning
from models.schedule import compute, keep_counts
from models.transforms import InputSpec


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """What is asked of one image: how to prune it, how many labels, whether to name the kept patches."""

    pruning: Pruning
    top_k: int = 5
    kept_patches: bool = False


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one image.

    ``classes`` and ``scores`` (softmax probabilities) of the top_k labels, best first. ``kept[s]``: ascending
    indices, row by row in the patch grid, of the patches left after stage s (None if not asked for);
    ``kept_counts[s]``: how many they are. ``compute``: share of the unpruned model's MACs.
    """

    classes: Int[np.ndarray, " top_k"]
    scores: Float[np.ndarray, " top_k"]
    kept_counts: tuple[int, ...]
    kept: tuple[Int[np.ndarray, " _"], ...] | None
    compute: float


class Classifier:
    """A model on its device in its dtype, ready to classify."""

    def __init__(self, model: PrunedViT, spec: InputSpec, device: str, dtype: torch.dtype) -> None:
        self.model = model.to(device=device, dtype=dtype).eval()
        self.spec = spec
        self.device = device
        self.dtype = dtype

    @torch.inference_mode()
    def classify(
        self, pixels: UInt8[Tensor, "B height width 3"], requests: Sequence[ImageRequest]
    ) -> list[Prediction]:
        """One prediction per image, in order. ``top_k`` beyond the number of classes gives all of them."""
        if len(pixels) != len(requests):
            raise ValueError(f"{len(pixels)} images, but {len(requests)} requests")
        inputs = normalise(pixels.to(self.device, non_blocking=True), self.spec, self.dtype)
        output = self.model(inputs, [request.pruning for request in requests])
        most = min(max(request.top_k for request in requests), output.logits.shape[1])
        best = output.logits.float().softmax(dim=1).topk(most, dim=1)
        scores, classes = best.values.cpu().numpy(), best.indices.cpu().numpy()
        arch, stages = self.model.arch, self.model.stages
        return [
            Prediction(
                classes=classes[image, : request.top_k],
                scores=scores[image, : request.top_k],
                kept_counts=keep_counts(arch.patches, request.pruning.keep_ratio, len(stages.blocks)),
                kept=tuple(stage[image].cpu().numpy() for stage in output.kept)
                if request.kept_patches
                else None,
                compute=compute(arch, stages, request.pruning.keep_ratio),
            )
            for image, request in enumerate(requests)
        ]


def normalise(
    pixels: UInt8[Tensor, "B height width 3"], spec: InputSpec, dtype: torch.dtype
) -> Float[Tensor, "B 3 height width"]:
    """uint8 RGB to the model's input: (value / 255 - mean) / std per channel, on the pixels' device."""
    mean = torch.tensor(spec.mean, device=pixels.device).view(3, 1, 1) * 255
    std = torch.tensor(spec.std, device=pixels.device).view(3, 1, 1) * 255
    return pixels.permute(0, 3, 1, 2).float().sub(mean).div(std).to(dtype)
