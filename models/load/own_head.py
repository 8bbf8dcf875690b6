"""Custom heads: a safetensors file with a linear layer or class embeddings, which replaces the head of a
network, if it has one.

`weight` [classes, features] and optionally `bias` [classes] are a linear layer. `class_embeddings` [classes,
features] are for zero-shot classification: logit = scale * cosine + bias, as in CLIP (Radford et al. 2021,
arXiv 2103.00020) and SigLIP (Zhai et al. 2023, arXiv 2303.15343); `scale` and `bias` are one number, or one
per class. The header may also have `labels` (a JSON list) and `scores` ("softmax" or "sigmoid").
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from models.families import Network
from models.files import write_whole
from models.finite import all_finite
from models.load.errors import ModelError
from models.load.files import is_safetensors, of_safetensors
from models.load.labels import of_collection
from models.scores import Scores, scores_for

# CLIP clips its scale to this maximum in training (a temperature of 0.01).
DEFAULT_SCALE = 100.0

_FORMS = (
    "expected are `weight` [classes, features] and optionally `bias` [classes], or `class_embeddings` "
    "[classes, "
    "features] and optionally `scale` and `bias`"
)


class CosineHead(nn.Linear):
    """Cosine classifier: ``scale`` times the cosine similarity to each embedding, plus ``bias``. Feature
    vectors are normalized in float32."""

    def __init__(
        self,
        embeddings: Float[Tensor, "classes features"],
        scale: Float[Tensor, "#classes"],
        bias: Float[Tensor, "#classes"],
    ) -> None:
        classes, features = embeddings.shape
        super().__init__(features, classes)
        with torch.no_grad():
            self.weight.copy_(F.normalize(embeddings.float(), dim=1) * scale.reshape(-1, 1))
            self.bias.copy_(bias.expand(classes))

    def forward(self, features: Float[Tensor, "B features"]) -> Float[Tensor, "B classes"]:
        """Compute the logits."""
        return super().forward(F.normalize(features.float(), dim=-1).to(features.dtype))


@dataclass(frozen=True)
class Head:
    """A head and the metadata from its file. ``labels``: None if the file has none. ``source``: the name of
    the file."""

    layer: nn.Linear
    labels: tuple[str, ...] | None
    scores: Scores
    source: str

    def put_on(self, vit: Network, features: int) -> None:
        """Replace the head of a network that has this number of features. Raises ModelError if the head needs
        another number, or if the network has two heads and this one is not linear."""
        wanted = self.layer.in_features
        if wanted != features:
            raise ModelError(
                f"{self.source} is a head for {wanted} features, but this network has {features}; it was "
                "made for another network"
            )
        if isinstance(vit, VisionTransformerDistilled):
            if isinstance(self.layer, CosineHead):
                raise ModelError(
                    f"{self.source} has class embeddings, and the network has two class tokens (it is "
                    "distilled), whose mean has no head of its own; use a linear head instead"
                )
            # A linear layer commutes with the mean, so the same layer can serve as both heads.
            vit.head_dist = self.layer
        vit.head = self.layer
        vit.num_classes = self.layer.out_features


def read_head(path: Path) -> Head:
    """Read a head from a file. Raises ModelError if it is not valid; the message says what is wrong and what
    is expected."""
    path = path.expanduser()
    if not path.is_file():
        raise ModelError(f"the head file {str(path)!r} does not exist")
    if not is_safetensors(path):
        raise ModelError(
            f"{path} is not a safetensors file; {_FORMS}, as written by safetensors.torch.save_file"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise of_safetensors(path, error) from error
    layer = _layer(tensors, path)
    labels = _labels(metadata, layer.out_features, path)
    scores = metadata.get("scores", scores_for(None, layer.out_features))
    if scores not in get_args(Scores):
        raise ModelError(f"{path}: `scores` is {scores!r}; allowed are softmax and sigmoid")
    return Head(layer.eval().requires_grad_(requires_grad=False), labels, scores, path.name)


def save_head(
    path: Path,
    weight: Float[Tensor, "classes features"],
    bias: Float[Tensor, " classes"],
    labels: Sequence[str],
    about: Mapping[str, str],
) -> None:
    """Write a linear head, replacing an existing file atomically. ``about``: additional header entries for
    human readers."""
    tensors = {"weight": weight.detach().contiguous(), "bias": bias.detach().contiguous()}
    content = serialise(tensors, metadata={"labels": json.dumps(list(labels)), "scores": "softmax", **about})
    write_whole(path, lambda file: file.write(content))


def _layer(tensors: Mapping[str, Tensor], path: Path) -> nn.Linear:
    forms = ({"weight", "bias"}, "weight"), ({"class_embeddings", "scale", "bias"}, "class_embeddings")
    main = next((name for names, name in forms if name in tensors and names >= set(tensors)), None)
    if main is None:
        raise ModelError(f"{path} has the tensors {', '.join(sorted(tensors)) or 'none'}; {_FORMS}")
    matrix = tensors[main]
    if matrix.ndim != 2 or min(matrix.shape) < 1:
        raise ModelError(f"{path}: `{main}` has the shape {list(matrix.shape)}; expected [classes, features]")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not all_finite(tensor.float()):
            raise ModelError(f"{path}: `{name}` has values that are not finite floating-point numbers")
    classes, features = matrix.shape
    if main == "weight":
        layer = nn.Linear(features, classes, bias="bias" in tensors)
        with torch.no_grad():
            layer.weight.copy_(matrix)
            if "bias" in tensors:
                layer.bias.copy_(_numbers(tensors["bias"], "bias", (classes,), path))
        return layer
    allowed = (1, classes)
    scale = _numbers(tensors.get("scale", torch.tensor(DEFAULT_SCALE)), "scale", allowed, path)
    bias = _numbers(tensors.get("bias", torch.zeros(1)), "bias", allowed, path)
    return CosineHead(matrix, scale, bias)


def _numbers(tensor: Tensor, name: str, allowed: tuple[int, ...], path: Path) -> Float[Tensor, " numbers"]:
    if tensor.ndim > 1 or tensor.numel() not in allowed:
        raise ModelError(
            f"{path}: `{name}` has the shape {list(tensor.shape)}; expected "
            f"{' or '.join(f'[{number}]' for number in sorted(set(allowed)))}"
        )
    return tensor.float().reshape(-1)


def _labels(metadata: Mapping[str, str], classes: int, path: Path) -> tuple[str, ...] | None:
    text = metadata.get("labels")
    if text is None:
        return None
    try:
        labels = of_collection(json.loads(text), f"`labels` in the header of {path}")
    except ValueError as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path}: `labels` in its header is not valid JSON: {error}") from error
    if len(labels) != classes:
        raise ModelError(
            f"{path} has {len(labels)} labels but {classes} classes; it must have one label per class"
        )
    return labels
