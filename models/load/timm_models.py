"""Create timm models by name, with weights from the Hugging Face hub or its local cache, or without
weights."""

import re
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import LayerNorm, SwiGLUPacked
from timm.models import get_arch_pretrained_cfgs
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models.families import Network, UnsupportedModelError
from models.families.cls_and_patches import ClsAndPatches
from models.load.errors import ModelError, first_line
from models.load.hub import offline_unless_the_hub_answers, what_to_do
from models.load.reference import known
from models.patch_embed import set_patch_stride

FEATURES_ONLY = (
    "has features but no classes: {why}; trimvit serve returns the features (/v1/embed), trimvit head "
    "fits a head for it (--head), trimvit train fine-tunes it"
)


def create_timm(
    name: str, *, pretrained: bool, patch_stride: int | None = None, **model_args: Any
) -> Network:
    """Create a network by its timm name or ``hf-hub:owner/name``. ``model_args`` are timm's arguments and
    those of `in_timms_words`. Raises ModelError if timm cannot build it or its weights are not available, and
    UnsupportedModelError for a class that cannot be pruned."""
    on_hub = name.startswith("hf-hub:")
    if not on_hub:
        known(name)
    try:
        with offline_unless_the_hub_answers() if pretrained else nullcontext():
            model = build(name, pretrained=pretrained, **model_args)
    except Exception as error:
        # Files on the hub and arguments from a file can fail in many ways.
        if not pretrained:
            raise ModelError(f"timm cannot build {name}: {first_line(error)}") from error
        if isinstance(error, KeyError) and "architecture" in str(error):
            raise ModelError(
                f"the weights of {name} could not be loaded: its config.json names neither a timm "
                "architecture nor a transformers class, so it belongs to another library"
            ) from error
        file = (
            "copy the checkpoint here and pass its path: --model /path/to/model.safetensors "
            f"--architecture {'NAME_OF_ITS_TIMM_ARCHITECTURE' if on_hub else name}"
        )
        raise ModelError(
            f"the weights of {name} could not be loaded: {first_line(error)} {what_to_do(error, file)}"
        ) from error
    if not isinstance(model, Network):
        raise UnsupportedModelError(f"its class is {type(model).__name__}")
    if patch_stride is not None:
        set_patch_stride(model, patch_stride)
    return model


def build(name: str, *, pretrained: bool = False, **model_args: Any) -> Any:
    """Call timm's `create_model`, with the additional arguments of `in_timms_words` and ``pooling``. A
    network with dynamic image size is built for its default size. Errors of timm pass through."""
    args = in_timms_words(model_args)
    pooling = args.pop("pooling", None)
    model = timm.create_model(name, pretrained=pretrained, **args)
    if isinstance(model, Network) and model.dynamic_img_size and not model.patch_embed.dynamic_img_pad:
        # With a fixed size it computes the same for images of that size, and it can be pruned.
        model = timm.create_model(name, pretrained=pretrained, **{**args, "dynamic_img_size": False})
    if pooling is not None:
        _pool(model, pooling)
    return model


def in_timms_words(model_args: Mapping[str, Any]) -> dict[str, Any]:
    """Convert arguments that a card can store as JSON to the classes and functions that timm expects.

    ``norm_eps``: epsilon of every LayerNorm. ``mlp_dim``: width of the MLP; for a gated MLP, of both halves
    together. ``mlp``: "swiglu" for a gated MLP. Raises ValueError for another ``mlp``.
    """
    args = dict(model_args)
    eps, mlp_dim, mlp = args.pop("norm_eps", None), args.pop("mlp_dim", None), args.pop("mlp", None)
    if eps is not None:
        args["norm_layer"] = partial(LayerNorm, eps=eps)
    if mlp_dim is not None:
        # timm computes int(embed_dim * mlp_ratio), so add half a unit against rounding errors.
        args["mlp_ratio"] = (mlp_dim + 0.5) / args["embed_dim"]
    if mlp is not None:
        if mlp != "swiglu":
            raise ValueError(f"the MLP {mlp!r} is not supported; supported is swiglu")
        args |= {"mlp_layer": SwiGLUPacked, "act_layer": "silu"}
    return args


def _pool(model: nn.Module, pooling: str) -> None:
    """Set the pooling of a network to "cls_and_patches", which timm does not offer. Raises ValueError for
    another pooling or an unsupported class."""
    if pooling != "cls_and_patches" or not isinstance(model, VisionTransformer):
        raise ValueError(f"the pooling {pooling!r} is not supported for a {type(model).__name__}")
    model.attn_pool = ClsAndPatches(model.num_prefix_tokens)
    model.pool_include_prefix = True
    if model.num_classes:
        place = model.head.weight
        model.head = nn.Linear(2 * model.embed_dim, model.num_classes, device=place.device, dtype=place.dtype)


def blank(name: str, **model_args: Any) -> Network:
    """Create a network on PyTorch's meta device, without values, to inspect its shapes. Raises as
    `create_timm` does."""
    with torch.device("meta"):
        return create_timm(name, pretrained=False, **model_args)


def is_projection(architecture: str, classes: int) -> bool:
    """Whether a head of this width is the projection of one of timm's CLIP towers for an architecture. It
    maps into the shared space of images and text, so it is not a classifier."""
    if "_clip_" not in architecture:
        return False
    if "." in architecture:
        return "_ft_" not in architecture and _width(architecture) == classes
    cards = get_arch_pretrained_cfgs(architecture)
    return any("_ft_" not in name and card.num_classes == classes for name, card in cards.items())


def project_features(vit: Network) -> None:
    """Make the head, which is a projection, the last step of the features. The network then has no head."""
    vit.fc_norm = nn.Sequential(vit.fc_norm, vit.head)
    vit.head, vit.num_classes = nn.Identity(), 0


def _width(name: str) -> int | None:
    card = timm.get_pretrained_cfg(name)
    return None if card is None else int(card.num_classes)


def similar_name(architecture: str, width: int, patch: int) -> str | None:
    """Return a similar timm name with this width and patch size; None if timm has no such model."""
    stem = architecture.partition(".")[0]
    sizes = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}
    if width in sizes:
        stem = re.sub("tiny|small|base|large|huge", sizes[width], stem)
    stem = re.sub(r"patch\d+", f"patch{patch}", stem)
    if stem == architecture.partition(".")[0]:
        return None
    if timm.is_model(stem):
        return stem
    near = [name for name in timm.list_models(f"{stem.rpartition('_')[0]}_*") if "clip" not in name]
    return near[0] if near else None
