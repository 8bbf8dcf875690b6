"""Find the state dict of a timm ViT in the content of a checkpoint, and remove nesting and prefixes.

Training scripts nest the weights (under "state_dict", "model", "ema" and others) and wrap the network
(DataParallel, torch.compile, Lightning, custom classes), which adds a prefix to each name.
"""

import argparse
import logging
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from torch import Tensor

from models.finite import all_finite
from models.load.errors import ModelError
from models.load.files import whole_model
from models.load.layouts import refuse_other_layouts
from models.load.pickles import StandIn

log = logging.getLogger(__name__)

_ANCHOR = "patch_embed.proj.weight"
_CLIP_ANCHOR = "class_embedding"  # in OpenAI's layout, which timm converts
# Wrappers that can occur anywhere in a name: torch.compile, FSDP, activation checkpointing.
_INNER = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AVERAGED = re.compile(r"(^|[._])(ema|averaged?)($|[._])", re.IGNORECASE)
# If a file holds several networks, the first of these keys that exists is used.
_USUAL = ("state_dict", "model_state_dict", "model", "module", "net", "network", "model_state", "weights", "")
_DEEPEST = 5
# Class weights of a loss, which are not part of the forward pass.
_OF_LOSS = re.compile(r"(^|.*[._])(loss(_\w+)?|criterion)\.")
# Counters that the package thop adds to every module.
_OF_PROFILER = re.compile(r"(^|\.)total_(ops|params)$")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Weights:
    """Tensors in float32, named as in a timm ViT (or as in OpenAI's CLIP, with the prefix ``visual.``).
    ``architecture`` and ``arguments``: the timm architecture and the arguments of timm's training script, if
    the file has them."""

    tensors: dict[str, Tensor]
    architecture: str | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)

    @property
    def clips(self) -> bool:
        """Whether the tensors are in CLIP's own layout. Its last matrix is a projection, not a classifier."""
        return f"visual.{_CLIP_ANCHOR}" in self.tensors


@dataclass(frozen=True, slots=True)
class _Found:
    """The tensors of one network in a file. ``place``: its keys in the file, joined by dots. ``prefix``: the
    prefix of its names. ``beside``: the other tensors in the same mapping."""

    place: str
    prefix: str
    tensors: dict[str, Tensor]
    beside: dict[str, Tensor]

    @property
    def name(self) -> str:
        return ".".join(part for part in (self.place, self.prefix.rstrip(".")) if part) or "the top level"


def find_weights(content: object, path: Path) -> Weights:
    """Find the weights in the content from `read_file`. Raises ModelError if there are none, if there are
    several networks and the choice is ambiguous, and for unsupported layouts and number formats."""
    places = list(state_dicts(content))
    found = [each for place, tensors in places for each in _networks(place, tensors)]
    if not found:
        for _, tensors in places:
            refuse_other_layouts(tensors, path)
        raise _no_weights(content, places, path)
    chosen = _chosen(found, path)
    refuse_other_layouts(chosen.tensors, path)
    tensors = {name: as_float32(name, tensor, path) for name, tensor in _with_head(chosen, path).items()}
    architecture, arguments = _said(content)
    return Weights(tensors, architecture, arguments)


def holds_network(content: object) -> bool:
    """Whether the content from `read_file` contains a network in timm's layout, or in OpenAI's layout of
    CLIP."""
    return any(True for place, tensors in state_dicts(content) for _ in _networks(place, tensors))


def state_dicts(content: object, place: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every mapping from names to tensors in the content from `read_file`, up to 5 levels deep, each
    with its keys joined by dots."""
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    tensors = {
        _INNER.sub("", name): value.detach()
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor) and not _OF_PROFILER.search(name)
    }
    if tensors:
        yield place, tensors
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping):
            yield from state_dicts(value, f"{place}.{key}" if place else key, depth + 1)


def _networks(place: str, tensors: dict[str, Tensor]) -> Iterator[_Found]:
    """Yield each network in a mapping, found by the prefix of its names. Tensors of other networks do not
    count as ``beside``."""
    networks = tuple(name.removesuffix(_ANCHOR) for name in tensors if name.endswith(f".{_ANCHOR}"))
    for anchor, layout in ((_ANCHOR, ""), (_CLIP_ANCHOR, "visual.")):
        prefixes = {
            name.removesuffix(anchor) for name in tensors if name == anchor or name.endswith(f".{anchor}")
        }
        for prefix in sorted(prefixes):
            if layout and f"{prefix}conv1.weight" not in tensors:
                continue
            inside = {name: each for name, each in tensors.items() if name.startswith(prefix)}
            yield _Found(
                place,
                prefix,
                {layout + name.removeprefix(prefix): each for name, each in inside.items()},
                {
                    name: each
                    for name, each in tensors.items()
                    if name not in inside and not name.startswith(networks)
                },
            )


def _chosen(found: list[_Found], path: Path) -> _Found:
    """Choose the averaged network (EMA) if there is one, as timm does; otherwise the one under the most usual
    key. Raises ModelError if this is ambiguous."""
    averaged = [each for each in found if _AVERAGED.search(each.name)]
    candidates = averaged or found
    if len(candidates) > 1:
        usual = next((place for place in _USUAL if any(each.place == place for each in candidates)), None)
        candidates = [each for each in candidates if usual in (None, each.place)]
    if len(candidates) != 1:
        names = ", ".join(each.name for each in found)
        raise ModelError(
            f"{path.name} contains several networks ({names}), but TrimViT serves one: save only this "
            "one, for example torch.save(model.backbone.state_dict(), 'weights.pth')"
        )
    (chosen,) = candidates
    if len(found) > 1:
        others = ", ".join(each.name for each in found if each is not chosen)
        log.warning(
            "%s: loading the weights of %s; the file also contains %s", path.name, chosen.name, others
        )
    return chosen


def _with_head(found: _Found, path: Path) -> dict[str, Tensor]:
    """Return the tensors with a head, if one can be found.

    If the head is a sequence with one linear layer, that layer becomes the head. If the backbone has no head,
    and a single linear layer is all that the file holds beside it, that layer becomes the head. Other tensors
    that are not part of the network are logged. Raises ModelError as `_refuse_layers_behind` does.
    """
    tensors = _with_plain_head(found, path)
    if _ANCHOR not in tensors:
        return tensors
    width = len(tensors[_ANCHOR])
    beside = {
        name: each for name, each in found.beside.items() if not (_OF_LOSS.match(name) and each.ndim < 2)
    }
    if "head.weight" in tensors:
        _refuse_layers_behind(tensors["head.weight"], beside, found, path)
        beside = {name: each for name, each in beside.items() if each.ndim > 1 and each.is_floating_point()}
    linears = [] if "head.weight" in tensors else _linears(beside, width)
    names = {f"{linears[0]}.weight", f"{linears[0]}.bias"} if len(linears) == 1 else set()
    if not names or names != set(beside):
        if beside:
            log.warning(
                "%s: ignoring tensors that are not part of the network: %s",
                path.name,
                ", ".join(list(beside)[:5]),
            )
        return tensors
    log.warning("%s: using %s as the head of the backbone %s", path.name, linears[0], found.name)
    head = {f"head.{name.rpartition('.')[2]}": found.beside[name] for name in names}
    return tensors | head


def _with_plain_head(found: _Found, path: Path) -> dict[str, Tensor]:
    """If the head is a sequence with only one layer that has weights, for example dropout and a linear layer,
    rename that layer to ``head``."""
    tensors = found.tensors
    of_head = {name for name in tensors if name.startswith("head.")}
    place = next((name.removesuffix(".weight") for name in of_head if name.endswith(".weight")), "")
    plain = {f"{place}.weight", f"{place}.bias"}
    if place in ("", "head") or of_head != plain or tensors[f"{place}.weight"].ndim != 2:
        return tensors
    log.warning("%s: using %s, the only layer with weights of its head, as the head", path.name, place)
    head = {f"head.{name.rpartition('.')[2]}": tensors[name] for name in plain}
    return {name: each for name, each in tensors.items() if name not in plain} | head


def _refuse_layers_behind(head: Tensor, beside: Mapping[str, Tensor], found: _Found, path: Path) -> None:
    """Raise ModelError if a second linear layer follows the network's head, so that its outputs are the
    classes. This is common if timm models are wrapped without removing their original head."""
    layer = next(iter(_linears(beside, len(head))), None) if head.ndim == 2 else None
    if layer is not None:
        raise ModelError(
            f"{path.name} has the layer {layer}, which reads the {len(head)} outputs of the head of "
            f"{found.name}. TrimViT serves a network with one head: fold both into one linear layer (weight "
            f"= {layer}.weight @ head.weight, bias = {layer}.weight @ head.bias + {layer}.bias), or save the "
            "network alone if its own outputs are the classes"
        )


def _linears(tensors: Mapping[str, Tensor], inputs: int) -> list[str]:
    """Return the names of the linear layers with this number of inputs."""
    return [
        name.removesuffix(".weight")
        for name, weight in tensors.items()
        if name.endswith(".weight") and weight.ndim == 2 and weight.shape[1] == inputs
    ]


def as_float32(name: str, tensor: Tensor, path: Path) -> Tensor:
    """Convert a tensor to float32. Raises ModelError with its name if it has no values, is quantized, or has
    values that are NaN or infinite."""
    if tensor.is_meta or tensor.is_sparse:
        raise ModelError(f"{path.name} contains no values for {name}; save the weights from a loaded model")
    if tensor.dtype not in _FLOATS or tensor.is_quantized:
        raise ModelError(
            f"{path.name} contains quantised weights ({name} is "
            f"{str(tensor.dtype).removeprefix('torch.')}); save the weights from before quantisation in "
            "float32, float16 or bfloat16 (--dtype int8 quantises them here)"
        )
    if tensor.numel() == 0:
        raise ModelError(
            f"{path.name} contains empty tensors, like a shard of DeepSpeed ZeRO-3; gather them first: "
            "python zero_to_fp32.py CHECKPOINT_FOLDER weights.pth"
        )
    numbers = tensor.float()
    if not all_finite(numbers):
        wrong = int((~torch.isfinite(numbers)).sum())
        what = "NaN" if numbers.isnan().any() else "infinite"
        raise ModelError(
            f"{path.name} is not served: {name} has {wrong} of {numbers.numel()} values that "
            f"are {what}; the training has diverged or the file is corrupt, so use an earlier checkpoint"
        )
    return numbers


def _said(content: object) -> tuple[str | None, Mapping[str, object]]:
    """Return the architecture and the arguments that timm's training script saves with the weights; None and
    empty if there are none."""
    architecture = content.get("arch") if isinstance(content, Mapping) else None
    if not isinstance(architecture, str) or not timm.is_model(architecture.split(".")[0]):
        return None, {}
    assert isinstance(content, Mapping)
    arguments = content.get("args")
    if isinstance(arguments, argparse.Namespace | types.SimpleNamespace):
        arguments = vars(arguments)
    return architecture, arguments if isinstance(arguments, Mapping) else {}


def _no_weights(content: object, places: list[tuple[str, dict[str, Tensor]]], path: Path) -> ModelError:
    if isinstance(content, Mapping):
        for key, value in content.items():
            if isinstance(value, StandIn) and key in (*_USUAL, "ema", "model_ema"):
                return whole_model(path, value, key)
    if places:
        names = [name for _, tensors in places for name in tensors][:3]
        return ModelError(
            f"{path.name} does not fit the architecture: it does not contain a timm ViT, missing "
            f"['patch_embed.proj.weight'] among tensors such as {', '.join(names)}"
        )
    if isinstance(content, Mapping) and content and all(isinstance(key, str) for key in content):
        what = f"it contains {', '.join(list(content)[:5])} and no tensors"
    elif isinstance(content, Mapping) and not content:
        what = "it is empty: cls_token, pos_embed and patch_embed.proj.weight are missing"
    else:
        what = f"it contains a {type(content).__name__}, not named tensors"
    return ModelError(
        f"{path} is not a readable checkpoint: {what}; save it with torch.save(model.state_dict(), "
        "'weights.pth')"
    )
