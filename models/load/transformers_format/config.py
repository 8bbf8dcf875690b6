"""Parse transformers' config.json: the equivalent timm network, its labels and its scores."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from models.load.config import refuse_regression
from models.load.errors import ModelError
from models.load.files import read_json
from models.load.labels import of_collection
from models.scores import Scores, scores_for

CONFIG = "config.json"

# How a class resamples its position embedding for images of another size.
# None means that it only accepts images of the network's own size.
Resampling = Literal["bicubic", "antialiased"]

_PLAIN = "vit_base_patch16_224"
_DISTILLED = "deit_base_distilled_patch16_224"


@dataclass(frozen=True, slots=True)
class Kind:
    """The properties of a transformers class.

    ``processor``: the default preprocessor class. ``args``: timm arguments that differ from a plain ViT.
    ``defaults``: default values for entries that a config.json omits. ``nested``: the values are under
    "vision_config". ``registers``: there are register tokens between CLS and the patches, and they have no
    position embedding.
    """

    processor: str
    args: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    architecture: str = _PLAIN
    nested: bool = False
    registers: bool = False
    resampling: Resampling | None = None


_MEAN_OF_PATCHES = {"class_token": False, "global_pool": "avg", "fc_norm": False}
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}

# Source: transformers' `models/*/modeling_*.py` and `configuration_*.py`, classes ...ForImageClassification.
KINDS: Mapping[str, Kind] = {
    "ViTForImageClassification": Kind("ViTImageProcessor"),
    "ViTMSNForImageClassification": Kind("ViTImageProcessor", defaults={"layer_norm_eps": 1e-6}),
    # The classifier does not use the distillation token, so it is a register token in timm's terms.
    "DeiTForImageClassification": Kind("DeiTImageProcessor", args={"reg_tokens": 1}),
    "DeiTForImageClassificationWithTeacher": Kind("DeiTImageProcessor", architecture=_DISTILLED),
    "Dinov2ForImageClassification": Kind(
        "BitImageProcessor",
        args={"init_values": 1e-5, "pooling": "cls_and_patches"},
        defaults={"layer_norm_eps": 1e-6, "patch_size": 14},
        resampling="bicubic",
    ),
    "Dinov2WithRegistersForImageClassification": Kind(
        "BitImageProcessor",
        args={"init_values": 1e-5, "pooling": "cls_and_patches", "no_embed_class": True},
        defaults={"layer_norm_eps": 1e-6, "num_register_tokens": 4},
        registers=True,
        resampling="antialiased",
    ),
    "IJepaForImageClassification": Kind("ViTImageProcessor", args=_MEAN_OF_PATCHES),
    "SiglipForImageClassification": Kind(
        "SiglipImageProcessor", args=_MEAN_OF_PATCHES, defaults=_SIGLIP, nested=True
    ),
    "Siglip2ForImageClassification": Kind(
        "Siglip2ImageProcessor", args=_MEAN_OF_PATCHES, defaults=_SIGLIP, nested=True
    ),
    # The classifier uses the patches before the final norm.
    "CLIPForImageClassification": Kind(
        "CLIPImageProcessor",
        args={"pre_norm": True, "final_norm": False, "global_pool": "avg", "fc_norm": False},
        defaults={"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "patch_size": 32},
        nested=True,
    ),
}
SUPPORTED = ", ".join(sorted(KINDS))

_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
}
# transformers' names of activations (`activations.py`) -> timm's (`layers/create_act.py`).
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class TransformersConfig:
    """The description of a classifier in a config.json.

    ``name``: the transformers class. ``args``: arguments for `models.load.timm_models.create_timm`, without
    the number of classes. ``image_size`` (height, width in pixels) and ``grid`` (rows, columns of patches)
    describe the position embedding.
    """

    path: Path
    name: str
    kind: Kind
    args: Mapping[str, Any]
    image_size: tuple[int, int]
    grid: tuple[int, int]
    labels: tuple[str, ...]
    scores: Scores

    @property
    def classes(self) -> int:
        """The number of classes according to the file. The rows of the classifier take precedence."""
        return len(self.labels)

    @property
    def prefix_positions(self) -> int:
        """The number of position embeddings before those of the patches, in the checkpoint."""
        if self.kind.architecture == _DISTILLED:
            return 2
        registers = 0 if self.kind.registers else self.args.get("reg_tokens", 0)
        return int(self.args.get("class_token", True)) + registers


def is_transformers(content: object) -> bool:
    """Whether a config.json belongs to transformers, not to timm. timm's has a single ``architecture``."""
    return (
        isinstance(content, Mapping)
        and not isinstance(content.get("architecture"), str)
        and "pretrained_cfg" not in content
        and (isinstance(content.get("architectures"), list) or isinstance(content.get("model_type"), str))
    )


def is_wrapper(content: object) -> bool:
    """Whether a config.json is from a timm network saved by transformers (TimmWrapper). It is timm's
    config.json, but the weight names have a prefix that timm does not know."""
    return isinstance(content, Mapping) and content.get("model_type") == "timm_wrapper"


def config_in(folder: Path) -> TransformersConfig | None:
    """Read the config.json in a folder. Returns None if there is none, or if it belongs to another library.

    Raises ModelError if it cannot be read, or if the network is not supported.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    content = read_json(path)
    if not is_transformers(content):
        return None
    assert isinstance(content, Mapping)
    return parse(content, path)


def parse(content: Mapping[str, Any], path: Path) -> TransformersConfig:
    """Parse the content of transformers' config.json. Raises ModelError as `config_in` does."""
    name = _class_of(content, path)
    kind = KINDS[name]
    own = content
    if kind.nested:
        own = {}
        # The older key, vision_config_dict, takes precedence, as in transformers.
        for key in ("vision_config", "vision_config_dict"):
            part = content.get(key) or {}
            if not isinstance(part, Mapping):
                raise ModelError(f"{path}: {key} must be a JSON object; got {part!r}")
            own = {**own, **part}
    values = {**_DEFAULTS, **kind.defaults, **{key: each for key, each in own.items() if each is not None}}
    width, heads = _whole(values, "hidden_size", path), _whole(values, "num_attention_heads", path)
    if width % heads or values.get("head_dim", width // heads) != width // heads:
        raise ModelError(
            f"{path}: hidden_size {width} is not a multiple of its {heads} heads, as timm requires"
        )
    activation = _ACTIVATIONS.get(str(values["hidden_act"]))
    if activation is None:
        raise ModelError(
            f"{path}: the activation {values['hidden_act']!r} is not supported; supported are "
            f"{', '.join(_ACTIVATIONS)}"
        )
    patch = _pair(values, "patch_size", path)
    if name.startswith("Siglip2"):
        # The config has the number of patches of a square image, not the image size.
        side = math.isqrt(_whole({"num_patches": 256, **values}, "num_patches", path))
        image_size = (side * patch[0], side * patch[1])
    else:
        image_size = _pair(values, "image_size", path)
    args = {
        "img_size": image_size,
        "patch_size": patch,
        "in_chans": _whole(values, "num_channels", path),
        "embed_dim": width,
        "depth": _whole(values, "num_hidden_layers", path),
        "num_heads": heads,
        "qkv_bias": bool(values["qkv_bias"]),
        "act_layer": activation,
        "norm_eps": _number(values, "layer_norm_eps", path),
        **_mlp(values, width, path),
        **kind.args,
    }
    if kind.registers:
        args["reg_tokens"] = _whole(values, "num_register_tokens", path)
    labels = _labels(content, path)
    return TransformersConfig(
        path=path,
        name=name,
        kind=kind,
        args=args,
        image_size=image_size,
        grid=(image_size[0] // patch[0], image_size[1] // patch[1]),
        labels=labels,
        scores=_scores(content, labels, path),
    )


def _class_of(content: Mapping[str, Any], path: Path) -> str:
    names = content.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ModelError(
            f"{path} is a transformers config ({content.get('model_type')}) and does not name its class; "
            "add it: "
            f'"architectures": ["ViTForImageClassification"] (supported: {SUPPORTED})'
        )
    found = next((name for name in names if name in KINDS), None)
    if found is not None:
        return str(found)
    name = names[0]
    if name.endswith("ForImageClassification"):
        what = "which TrimViT cannot prune yet"
    elif name.startswith(("ViT", "DeiT", "Dinov2", "IJepa", "Siglip", "CLIP")):
        what = (
            "which has no classifier, only features, which are not supported yet, so fine-tune it first "
            "(transformers' ...ForImageClassification, or trimvit train)"
        )
    else:
        what = "which is not an image classifier that TrimViT supports"
    raise ModelError(f"{path.parent} is a {name} of transformers, {what}. Supported: {SUPPORTED}")


def _mlp(values: Mapping[str, Any], width: int, path: Path) -> dict[str, Any]:
    """Return the MLP arguments. DINOv2 classes specify a ratio; with SwiGLU, the hidden width is two thirds
    of that, rounded up to a multiple of 8."""
    if "use_swiglu_ffn" not in values and "layerscale_value" not in values:
        return {"mlp_dim": _whole(values, "intermediate_size", path)}
    hidden = int(width * _number(values, "mlp_ratio", path))
    if not values.get("use_swiglu_ffn"):
        return {"mlp_dim": hidden}
    return {"mlp_dim": 2 * ((int(hidden * 2 / 3) + 7) // 8 * 8), "mlp": "swiglu"}


def _labels(content: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Return the labels from id2label, else from label2id, else transformers' default names LABEL_0, LABEL_1
    and so on. transformers omits them from the file if there are two, which is its default."""
    for key in ("id2label", "label2id"):
        if content.get(key):
            return of_collection(content[key], f"{path}: {key}", key)
    number = content.get("num_labels")
    return tuple(f"LABEL_{index}" for index in range(number if type(number) is int else 2))


def _scores(content: Mapping[str, Any], labels: tuple[str, ...], path: Path) -> Scores:
    refuse_regression(content, path)
    return scores_for(content.get("problem_type"), len(labels))


def _whole(values: Mapping[str, Any], key: str, path: Path) -> int:
    value = values[key]
    if type(value) is not int or value < 0 or (value == 0 and key != "num_register_tokens"):
        raise ModelError(f"{path}: {key} must be a whole number above 0; got {value!r}")
    return value


def _number(values: Mapping[str, Any], key: str, path: Path) -> float:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ModelError(f"{path}: {key} must be a number above 0; got {value!r}")
    return float(value)


def _pair(values: Mapping[str, Any], key: str, path: Path) -> tuple[int, int]:
    """Return a pair (height, width); a single number means both."""
    value = values[key]
    both = [value, value] if type(value) is int else value
    if (
        not isinstance(both, list | tuple)
        or len(both) != 2
        or not all(type(each) is int and each > 0 for each in both)
    ):
        raise ModelError(f"{path}: {key} must be a number of pixels or two; got {value!r}")
    return both[0], both[1]
