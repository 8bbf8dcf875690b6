"""Infer how to build the network for given weights: image size, channels, classes, pooling, registers."""

import logging
import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import eva, vision_transformer
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from torch import Tensor

from models.families import Network
from models.load.errors import ModelError, first_line
from models.load.timm_models import blank, create_timm, similar_name
from models.load.uninitialised import Uninitialised
from models.patch_embed import patch_grid

log = logging.getLogger(__name__)

HEADS = ("head.", "head_dist.")
Size = tuple[int, int]


@dataclass(frozen=True)
class Fit:
    """How to build a network for given weights.

    ``model_args`` and ``pretrained_cfg`` are timm's; ``tensors`` are the weights under timm's names.
    ``grid``: rows and columns of patches in the position embedding; None without one. ``size``: the image
    size (height, width in pixels) that the weights were trained for. ``usual``: the image size according to
    the description of the network. ``source``: the name of the file, for error messages.
    """

    architecture: str
    model_args: dict[str, Any]
    pretrained_cfg: Mapping[str, Any] | None
    tensors: dict[str, Tensor]
    grid: Size | None
    size: Size
    usual: Size
    source: str

    def build(
        self, *, patch_stride: int | None = None, head_may_differ: bool = False, **changes: Any
    ) -> Network:
        """Build the network and load the weights.

        The position embedding is resampled if ``changes`` (arguments of timm) or ``patch_stride`` require
        another grid. With ``head_may_differ``, a head of another shape keeps timm's initialization. Raises
        ModelError if weights are missing or left over.
        """
        args = {**_card(self.pretrained_cfg), **self.model_args, "img_size": self.size, **changes}
        with nullcontext() if head_may_differ else Uninitialised():
            vit = create_timm(self.architecture, pretrained=False, patch_stride=patch_stride, **args)
        load_into(vit, self._at_grid_of(vit), self.source, head_may_differ=head_may_differ)
        return vit

    def _at_grid_of(self, vit: Network) -> dict[str, Tensor]:
        positions = self.tensors.get("pos_embed")
        grid = tuple(vit.patch_embed.grid_size)
        if positions is None or self.grid is None or self.grid == grid:
            return self.tensors
        prefix = positions.shape[1] - self.grid[0] * self.grid[1]
        moved = resample_abs_pos_embed(
            positions, new_size=list(grid), old_size=list(self.grid), num_prefix_tokens=prefix
        )
        return {**self.tensors, "pos_embed": moved}


def fit(
    architecture: str,
    tensors: dict[str, Tensor],
    source: str,
    *,
    model_args: Mapping[str, Any],
    pretrained_cfg: Mapping[str, Any] | None = None,
    grid: Size | None = None,
    patch_stride: int | None = None,
    pooling_matters: bool = True,
) -> Fit:
    """Infer how to build the network of an architecture for these weights.

    ``model_args`` and ``pretrained_cfg`` hold what is already known. ``grid``: the grid of the position
    embedding, if it is known. ``patch_stride``: a stride that the weights may have been trained with.

    Raises ModelError if the weights belong to another architecture, or if their grid cannot be determined.
    """
    args = dict(model_args)
    plain = blank(architecture, **_card(pretrained_cfg), **args)
    _refuse_another_network(tensors, plain, architecture, source)
    tensors = _under_timms_names(tensors, plain, source)
    args |= _channels_and_classes(tensors)
    args |= _parts(tensors, plain, source, pooling_matters=pooling_matters)
    args.pop("dynamic_img_size", None)  # the server uses a single input size
    try:
        shaped = blank(architecture, **_card(pretrained_cfg), **args)
    except ModelError as error:
        raise ModelError(f"{source} does not fit the architecture: {error}") from error
    size, grid = _size_and_grid(tensors, shaped, source, grid, patch_stride)
    usual = tuple(shaped.patch_embed.img_size)
    return Fit(architecture, args, pretrained_cfg, tensors, grid, size, usual, source)


def load_into(vit: Network, tensors: dict[str, Tensor], source: str, *, head_may_differ: bool) -> None:
    """Load weights into a network in place. Raises ModelError if a tensor is missing, left over or has
    another shape. With ``head_may_differ``, the weights of a head that does not match are skipped."""
    own = vit.state_dict()
    if head_may_differ:
        tensors = {
            name: tensor
            for name, tensor in tensors.items()
            if not name.startswith(HEADS) or own.get(name, torch.empty(0)).shape == tensor.shape
        }
    for name, tensor in tensors.items():
        if name in own and own[name].shape != tensor.shape:
            raise ModelError(
                f"{source} does not fit the architecture: {name} has the shape {list(tensor.shape)}, "
                f"expected {list(own[name].shape)}"
            )
    missing, left_over = vit.load_state_dict(tensors, strict=False)
    if head_may_differ:
        missing = [name for name in missing if not name.startswith(HEADS)]
    if missing or left_over:
        raise ModelError(
            f"{source} does not fit the architecture: missing {missing[:3] or 'none'}, "
            f"unexpected {left_over[:3] or 'none'}"
        )


def _card(pretrained_cfg: Mapping[str, Any] | None) -> dict[str, Any]:
    return {} if pretrained_cfg is None else {"pretrained_cfg": dict(pretrained_cfg)}


def _refuse_another_network(
    tensors: Mapping[str, Tensor], plain: Network, architecture: str, source: str
) -> None:
    """Raise ModelError, listing the differences, if the weights belong to another network. This runs before
    any conversion, because timm would silently resample patches of another size."""
    patches = tensors.get("patch_embed.proj.weight", tensors.get("visual.conv1.weight"))
    if patches is None:
        return
    rows, columns = plain.patch_embed.patch_size
    width, size = patches.shape[0] if patches.ndim else 0, (rows, columns)
    if patches.ndim == 4:
        size = (patches.shape[2], patches.shape[3])
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}) or len(plain.blocks)
    differ = [
        f"{what} {theirs} and not {ours}"
        for what, theirs, ours in (
            ("patches of", "{} x {}".format(*size), f"{rows} x {columns}"),
            ("a width of", width, plain.embed_dim),
            ("blocks:", depth, len(plain.blocks)),
        )
        if theirs != ours
    ]
    if len(differ) == 1 and differ[0].startswith("blocks:") and abs(depth - len(plain.blocks)) == 1:
        return  # a single missing or extra block: a later error lists its tensors
    if "dist_token" in tensors and not isinstance(plain, VisionTransformerDistilled):
        differ.append("a distillation token (name an architecture such as deit_tiny_distilled_patch16_224)")
    if not differ:
        return
    name = similar_name(architecture, width, size[0])
    hint = f"; --architecture {name} may be the right one" if name else ""
    raise ModelError(
        f"{source} does not fit the architecture: its weights have {', '.join(differ)} "
        f"as {architecture}{hint}"
    )


def _under_timms_names(tensors: dict[str, Tensor], plain: Network, source: str) -> dict[str, Tensor]:
    """Apply timm's own conversion of names and shapes. Its resampling of the position embedding is skipped,
    because it guesses the grid."""
    convert, positions = partial(vision_transformer.checkpoint_filter_fn, adapt_layer_scale=True), None
    if isinstance(plain, Eva):
        # It needs the position embedding, and resamples positions to the network's own size.
        convert = eva.checkpoint_filter_fn
    else:
        positions, plain.pos_embed = plain.pos_embed, None
    try:
        converted: dict[str, Tensor] = convert(dict(tensors), plain)
    except Exception as error:
        # timm converts before it compares, so unexpected shapes raise errors of many kinds.
        raise ModelError(f"{source} does not fit the architecture: {first_line(error)}") from error
    finally:
        if positions is not None:
            plain.pos_embed = positions
    return converted


def _channels_and_classes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    args: dict[str, Any] = {}
    patches, head = tensors.get("patch_embed.proj.weight"), tensors.get("head.weight")
    if patches is not None and patches.ndim == 4:
        args["in_chans"] = patches.shape[1]
    if head is None:
        args["num_classes"] = 0
    elif head.ndim == 2:
        args["num_classes"] = len(head)
    return args


def _parts(
    tensors: Mapping[str, Tensor], plain: Network, source: str, *, pooling_matters: bool
) -> dict[str, Any]:
    """Infer timm arguments for the optional parts of the network: the norm before or after pooling, class and
    register tokens, layer scale. With ``pooling_matters``, raises ModelError if the pooling is ambiguous."""
    args: dict[str, Any] = {}
    if isinstance(plain, Eva):
        return args  # for this class, the architecture's name determines all parts
    own = plain.state_dict()
    norms = {name for name in ("norm", "fc_norm") if f"{name}.weight" in tensors}
    if norms == {"fc_norm"} and "fc_norm.weight" not in own:
        args["global_pool"] = "avg"
        log.warning(
            "%s: the norm comes after the pooling (fc_norm), so the mean of the patches is "
            "used (global_pool=avg)",
            source,
        )
    elif norms == {"norm"} and "norm.weight" not in own and pooling_matters:
        raise ModelError(
            f"{source} has norm.weight where the architecture has fc_norm.weight, so its pooling is "
            'unknown; specify it in a config.json in the folder of the file: {"architecture": ..., '
            '"global_pool": "token"}'
        )
    elif norms == {"norm"} and "norm.weight" not in own:
        args["global_pool"] = "token" if "cls_token" in tensors else "avg"
        args["fc_norm"] = False
    registers = tensors.get("reg_token")
    if registers is not None and registers.ndim == 3 and registers.shape[1] != plain.num_reg_tokens:
        args["reg_tokens"] = registers.shape[1]
        # In networks with registers from timm and DINOv2, only patches have position embeddings.
        args["no_embed_class"] = _positions(tensors) in _squares()
    if "cls_token" not in tensors and "cls_token" in own and "blocks.0.norm1.weight" in tensors and norms:
        args["class_token"] = False
        args.setdefault("global_pool", "avg")
        args["fc_norm"] = "fc_norm" in norms
    if "blocks.0.ls1.gamma" in tensors and "blocks.0.ls1.gamma" not in own:
        args["init_values"] = 1e-5
    return args | _norms_and_biases(tensors, own)


def _norms_and_biases(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer timm arguments for norms that only the weights have, and for biases that only the architecture
    has."""
    args: dict[str, Any] = {}
    for name, arg in (("blocks.0.attn.q_norm.weight", "qk_norm"), ("norm_pre.weight", "pre_norm")):
        if name in tensors and name not in own:
            args[arg] = True
    for layer, arg in (("qkv", "qkv_bias"), ("proj", "proj_bias")):
        bias, weight = (f"blocks.0.attn.{layer}.{part}" for part in ("bias", "weight"))
        if weight in tensors and bias in own and bias not in tensors:
            args[arg] = False
    return args


def _positions(tensors: Mapping[str, Tensor]) -> int:
    positions = tensors.get("pos_embed")
    return positions.shape[1] if positions is not None and positions.ndim == 3 else 0


def _squares() -> frozenset[int]:
    return frozenset(side * side for side in range(1, 200))


def _size_and_grid(
    tensors: Mapping[str, Tensor],
    vit: Network,
    source: str,
    grid: Size | None,
    patch_stride: int | None,
) -> tuple[Size, Size | None]:
    """Return the image size that the position embedding was trained for, in pixels, and its grid of patches.
    Raises ModelError if the grid is unknown."""
    usual: Size = tuple(vit.patch_embed.img_size)
    positions = tensors.get("pos_embed")
    if positions is None or vit.pos_embed is None:
        return usual, None
    if positions.ndim != 3:
        raise ModelError(
            f"{source} does not fit the architecture: pos_embed has the shape {list(positions.shape)}, "
            "expected [1, tokens, width]"
        )
    prefix = vit.pos_embed.shape[1] - math.prod(vit.patch_embed.grid_size)
    patches = positions.shape[1] - prefix
    rows, columns = vit.patch_embed.patch_size
    if grid is not None and math.prod(grid) == patches:
        return usual, grid
    if patch_stride is not None and 1 <= patch_stride <= min(rows, columns):
        strided = patch_grid(usual, (rows, columns), (patch_stride, patch_stride))
        if math.prod(strided) == patches:
            return usual, strided
    own: Size = tuple(vit.patch_embed.grid_size)
    if math.prod(own) == patches:
        return usual, own
    side = math.isqrt(max(patches, 0))
    if patches < 1 or side * side != patches:
        raise ModelError(_unknown_grid(source, patches, rows, columns))
    return (side * rows, side * columns), (side, side)


def _unknown_grid(source: str, patches: int, rows: int, columns: int) -> str:
    pairs = [
        (height, patches // height)
        for height in range(max(1, math.isqrt(max(patches, 0)) // 3), math.isqrt(max(patches, 0)) + 1)
        if patches % height == 0
    ]
    height, width = pairs[-1] if pairs else (14, 28)
    may = ", ".join(f"{rows * a} x {columns * b}" for a, b in reversed(pairs)) or "none near"
    return (
        f"{source} does not fit the architecture: its position embedding has {patches} patches, which is not "
        f"a square number; it may be for {may} pixels or transposed. Specify it in a config.json in its "
        "folder: "
        f'{{"architecture": ..., "model_args": {{"img_size": [{rows * height}, {columns * width}]}}}}'
    )
