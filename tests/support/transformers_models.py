"""Small random classifiers of the transformers package, saved as it saves them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from tests.models.conftest import randomise_

SIDE, PATCH, CLASSES = 35, 7, 11
LABELS = tuple(f"kind {index}" for index in range(CLASSES))
_SIZES: Mapping[str, Any] = {
    "hidden_size": 30,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "patch_size": PATCH,
}
_VISION: Mapping[str, Any] = {**_SIZES, "intermediate_size": 44, "image_size": SIDE}
_TEXT = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 9,
}


def _flat(config: str, **more: Any) -> Callable[..., Any]:
    return lambda **asked: getattr(transformers, config)(**{**_VISION, **more, **asked})


def _dino(config: str, **more: Any) -> Callable[..., Any]:
    values = {**_SIZES, "image_size": SIDE, "mlp_ratio": 2, **more}
    return lambda **asked: getattr(transformers, config)(**{**values, **asked})


def _nested(config: str, **vision: Any) -> Callable[..., Any]:
    def make(**asked: Any) -> Any:
        own = {key: asked.pop(key) for key in list(asked) if key in _VISION or key == "num_channels"}
        return getattr(transformers, config)(
            vision_config={**_VISION, **vision, **own}, text_config=_TEXT, **asked
        )

    return make


# Name of a case -> its class, and what makes its configuration.
CASES: Mapping[str, tuple[str, Callable[..., Any]]] = {
    "vit": ("ViTForImageClassification", _flat("ViTConfig")),
    "vit without biases": ("ViTForImageClassification", _flat("ViTConfig", qkv_bias=False)),
    "vit with another activation": ("ViTForImageClassification", _flat("ViTConfig", hidden_act="gelu_new")),
    "msn": ("ViTMSNForImageClassification", _flat("ViTMSNConfig")),
    "deit": ("DeiTForImageClassification", _flat("DeiTConfig")),
    "deit with teacher": ("DeiTForImageClassificationWithTeacher", _flat("DeiTConfig")),
    "dinov2": ("Dinov2ForImageClassification", _dino("Dinov2Config")),
    "dinov2 gated": ("Dinov2ForImageClassification", _dino("Dinov2Config", use_swiglu_ffn=True)),
    "dinov2 with registers": (
        "Dinov2WithRegistersForImageClassification",
        _dino("Dinov2WithRegistersConfig", num_register_tokens=3),
    ),
    "ijepa": ("IJepaForImageClassification", _flat("IJepaConfig")),
    "siglip": ("SiglipForImageClassification", _nested("SiglipConfig")),
    "siglip2": (
        "Siglip2ForImageClassification",
        _nested("Siglip2Config", num_patches=(SIDE // PATCH) ** 2),
    ),
    "clip": ("CLIPForImageClassification", _nested("CLIPConfig")),
}


def make(case: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A network in evaluation mode whose every parameter has ordinary values."""
    name, config = CASES[case]
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    model = getattr(transformers, name)(config(**{**labels, **changes}))
    randomise_(model, seed)
    model.eval()
    return model


def save(case: str, folder: Path, *, processor: Any = None, **changes: Any) -> PreTrainedModel:
    """The network, saved into ``folder`` with a processor that shows it images as they come."""
    model = make(case, **changes)
    model.save_pretrained(folder)
    size = (SIDE, SIDE)
    if processor is None:
        processor = transformers.ViTImageProcessor(size={"height": size[0], "width": size[1]})
    processor.save_pretrained(folder)
    return model


def logits_of(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """Its logits [B, classes] for normalised pixels [B, 3, SIDE, SIDE]."""
    with torch.inference_mode():
        if type(model).__name__.startswith("Siglip2"):
            side = pixels.shape[-1] // PATCH
            patches = pixels.unflatten(3, (side, PATCH)).unflatten(2, (side, PATCH))
            patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(1, 2).flatten(2)
            shapes = torch.tensor([[side, side]] * len(pixels))
            mask = torch.ones(len(pixels), side * side, dtype=torch.int32)
            logits: Tensor = model(patches, pixel_attention_mask=mask, spatial_shapes=shapes).logits
        else:
            logits = model(pixels).logits
    return logits
