"""Convert transformers' tensors to timm's names and shapes: q, k and v concatenated, positions and tokens
reshaped.

transformers has renamed its tensors over time but still writes the older names to files. Both are supported.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from models.load.errors import ModelError
from models.load.state_dict import as_float32, state_dicts
from models.load.transformers_format.config import Resampling, TransformersConfig

_ANCHOR = re.compile(r"^(.*?)embeddings\.patch_embeddings?\.(projection\.)?weight$")
_BLOCK = r"^(?:encoder\.)?layers?\.(\d+)\."
_HEADS = re.compile(r"^(?:.*\.)?(classifier|cls_classifier|distillation_classifier)\.(weight|bias)$")

# Pattern of a name, after the network's prefix -> timm's name. The first match is used.
_NAMES: tuple[tuple[str, str], ...] = (
    (r"^embeddings\.cls_token$|^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$|^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embeddings?\.(?:projection\.)?(weight|bias)$", r"patch_embed.proj.\1"),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^(?:post_)?layernorm\.", "norm."),
    (_BLOCK + r"(?:layernorm_before|layer_norm1|norm1)\.", r"blocks.\1.norm1."),
    (_BLOCK + r"(?:layernorm_after|layer_norm2|norm2)\.", r"blocks.\1.norm2."),
    (_BLOCK + r"attention\.attention\.([qkv])(?:uery|ey|alue)\.", r"blocks.\1.attn.\2."),
    (_BLOCK + r"(?:attention|self_attn)\.([qkv])_proj\.", r"blocks.\1.attn.\2."),
    (
        _BLOCK + r"(?:attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.",
        r"blocks.\1.attn.proj.",
    ),
    (_BLOCK + r"(?:intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.", r"blocks.\1.mlp.fc1."),
    (_BLOCK + r"(?:output\.dense|mlp\.fc2|mlp\.weights_out|mlp\.down_proj)\.", r"blocks.\1.mlp.fc2."),
    (_BLOCK + r"mlp\.(gate|up)_proj\.", r"blocks.\1.mlp.\2."),
    (_BLOCK + r"layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
)
# Tensors that no classifier uses: for masked training, for other heads, and position indices.
_UNREAD = re.compile(r"^(embeddings\.(mask_token|position_ids)$|pooler\.|head\.)")
# timm tensor -> the parts in the checkpoint that are concatenated, in this order.
_JOINED = {"attn.qkv": ("attn.q", "attn.k", "attn.v"), "mlp.fc1": ("mlp.gate", "mlp.up")}


def under_timms_names(content: object, config: TransformersConfig, path: Path) -> dict[str, Tensor]:
    """Convert the content from `read_file` to float32 weights for the timm network of ``config``.

    Raises ModelError if weights are missing, or not in transformers' layout.
    """
    tensors = _tensors_of(content, path)
    prefix = next(match[1] for match in map(_ANCHOR.match, tensors) if match)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        timms = _timms_name(name, prefix)
        if timms is not None:
            found[timms] = as_float32(name, tensor, path)
    found = _joined(found)
    _check(found, config, path)
    return _shaped(found, config)


def resampled(
    tensors: Mapping[str, Tensor], config: TransformersConfig, grid: tuple[int, int]
) -> dict[str, Tensor]:
    """Resample the position embedding to another grid, in the same way as the transformers class. Classes
    that do not resample keep theirs."""
    if config.kind.resampling is None or grid == config.grid:
        return dict(tensors)
    prefix = 0 if config.kind.registers else 1
    positions = tensors["pos_embed"]
    return {**tensors, "pos_embed": _at(positions, prefix, config.grid, grid, config.kind.resampling)}


def _tensors_of(content: object, path: Path) -> dict[str, Tensor]:
    for _, tensors in state_dicts(content):
        if any(map(_ANCHOR.match, tensors)):
            return tensors
    raise ModelError(
        f"{path.name} does not contain a network in the layout of transformers, which its config.json "
        "names: no tensor is named ...embeddings.patch_embeddings.projection.weight"
    )


def _timms_name(name: str, prefix: str) -> str | None:
    """Return timm's name of a tensor: None if no classifier uses it, the name itself if it is unknown."""
    head = _HEADS.match(name)
    if head is not None:
        return f"{'head_dist' if head[1].startswith('distillation') else 'head'}.{head[2]}"
    own = name.removeprefix(prefix)  # ViTMSN's layers are written without it
    if _UNREAD.match(own):
        return None
    for pattern, timms in _NAMES:
        renamed, times = re.subn(pattern, timms, own)
        if times:
            return renamed
    return name


def _joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    joined = dict(tensors)
    for name in tensors:
        for whole, parts in _JOINED.items():
            if f".{parts[0]}." not in name:
                continue
            names = [name.replace(f".{parts[0]}.", f".{part}.") for part in parts]
            if all(each in joined for each in names):
                # The activation applies to transformers' gate and to timm's first half.
                joined[name.replace(f".{parts[0]}.", f".{whole}.")] = torch.cat(
                    [joined.pop(each) for each in names]
                )
    return joined


def _check(tensors: Mapping[str, Tensor], config: TransformersConfig, path: Path) -> None:
    if "head.weight" not in tensors:
        raise ModelError(
            f"{path.name} contains no classifier (classifier.weight), although {config.path} names "
            f"{config.name}; it has only the backbone, so fine-tune it first"
        )
    positions, patches = tensors.get("pos_embed"), tensors["patch_embed.proj.weight"]
    if positions is not None:
        wanted = config.grid[0] * config.grid[1] + config.prefix_positions
        height, width = config.image_size
        rows, columns = config.args["patch_size"]
        if positions.ndim < 2 or positions.shape[-2] != wanted:
            raise ModelError(
                f"{path.name} does not fit {config.path}: its position embedding has the shape "
                f"{list(positions.shape)}, and images of {height} x {width} pixels in patches of "
                f"{rows} x {columns} have {wanted} positions"
            )
    if patches.ndim not in (2, 4):
        raise ModelError(f"{path.name}: its patch embedding has the shape {list(patches.shape)}")


def _shaped(tensors: dict[str, Tensor], config: TransformersConfig) -> dict[str, Tensor]:
    """Reshape and move tensors to match timm. Changes and returns ``tensors``."""
    width = config.args["embed_dim"]
    for name in ("cls_token", "reg_token", "dist_token", "pos_embed"):
        if name in tensors:
            tensors[name] = tensors[name].reshape(1, -1, width)
    patches = tensors["patch_embed.proj.weight"]
    if patches.ndim == 2:
        # Siglip2 uses a linear layer over pixels in the order rows, columns, channels.
        rows, columns = config.args["patch_size"]
        patches = patches.reshape(width, rows, columns, -1).permute(0, 3, 1, 2)
        tensors["patch_embed.proj.weight"] = patches.contiguous()
    if "reg_tokens" in config.args and "dist_token" in tensors:
        tensors["reg_token"] = tensors.pop("dist_token")
    if config.kind.registers:
        # Add the position of CLS to the token: in this case, timm has positions for patches only.
        positions = tensors["pos_embed"]
        tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
        tensors["pos_embed"] = positions[:, 1:]
    if not config.args.get("final_norm", True):
        tensors.pop("norm.weight", None)
        tensors.pop("norm.bias", None)
    return tensors


def _at(
    positions: Tensor,
    prefix: int,
    before: tuple[int, int],
    after: tuple[int, int],
    resampling: Resampling,
) -> Tensor:
    patches = positions[:, prefix:].unflatten(1, before).permute(0, 3, 1, 2)
    moved = F.interpolate(
        patches, after, mode="bicubic", align_corners=False, antialias=resampling == "antialiased"
    )
    return torch.cat([positions[:, :prefix], moved.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
