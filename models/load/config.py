"""Parse timm's config.json, in its current and its older form."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg

from models.load.errors import ModelError
from models.load.files import read_json
from models.load.labels import of_collection

log = logging.getLogger(__name__)

CONFIG = "config.json"
# Entries that say where to download weights, or how to convert them. These are never taken from a file.
_NOT_TAKEN = (
    "url",
    "file",
    "state_dict",
    "hf_hub_id",
    "hf_hub_filename",
    "source",
    "custom_load",
    "label_offset",
)
_NOT_ARGUMENTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
_TAKEN = frozenset(each.name for each in fields(PretrainedCfg)) - frozenset(_NOT_TAKEN)
_OF_DATA = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


@dataclass(frozen=True)
class TimmConfig:
    """The description of a timm network. ``path``: the config.json that it was read from, if any.
    ``model_args``: arguments for `timm.create_model`. ``pretrained_cfg``: timm's configuration of the
    weights; None for the default of the architecture. ``problem``: the file's problem_type."""

    path: Path | None = None
    architecture: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    pretrained_cfg: Mapping[str, Any] | None = None
    labels: tuple[str, ...] | None = None
    num_classes: int | None = None
    problem: object = None


def config_in(folder: Path) -> TimmConfig | None:
    """Read the config.json in a folder. Returns None if there is none, or if it belongs to another library.
    Raises ModelError if it cannot be read or has invalid values."""
    path = folder / CONFIG
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise ModelError(
            f"{path} is not a config.json of timm: it is not a JSON object; correct or remove it"
        )
    if not isinstance(content.get("architecture"), str) and "pretrained_cfg" not in content:
        log.warning("ignoring %s: it is not timm's (it names no architecture)", path)
        return None
    return parse(content, path)


def parse(content: Mapping[str, Any], path: Path) -> TimmConfig:
    """Parse the content of timm's config.json. Before timm 0.9, all entries were on one level. Raises
    ModelError for invalid values."""
    own = content.get("pretrained_cfg", content)
    args = content.get("model_args") or {}
    refuse_regression(content, path)
    if not isinstance(own, Mapping) or not isinstance(args, Mapping):
        raise ModelError(
            f"{path}: pretrained_cfg and model_args must be JSON objects; correct or remove the file"
        )
    architecture = content.get("architecture") or own.get("architecture")
    if not isinstance(architecture, str) or not timm.is_model(architecture.split(".")[0]):
        raise ModelError(f"{path}: timm has no architecture {architecture!r}; correct it or remove the file")
    labels = next(
        (
            of_collection(where[key], f"{path}: {key}", key)
            for where in (content, own)
            for key in ("label_names", "labels", "id2label")
            if where.get(key)
        ),
        None,
    )
    classes = args.get("num_classes", content.get("num_classes", own.get("num_classes")))
    if classes is not None and (type(classes) is not int or classes < 0):
        raise ModelError(f"{path}: num_classes must be a whole number such as 1000; got {classes!r}")
    args = {name: value for name, value in args.items() if name not in _NOT_ARGUMENTS}
    pool = content.get("global_pool")
    if isinstance(pool, str) and pool:
        args.setdefault("global_pool", pool)
    return TimmConfig(
        path=path,
        architecture=architecture,
        model_args=args,
        pretrained_cfg={
            **{name: value for name, value in own.items() if name in _TAKEN and name != "label_names"},
            "architecture": architecture,
        },
        labels=labels,
        num_classes=classes,
        problem=content.get("problem_type"),
    )


def refuse_regression(content: Mapping[str, Any], path: Path) -> None:
    """Raise ModelError if the config.json describes a regression model."""
    if content.get("problem_type") == "regression":
        raise ModelError(f"{path} is for regression, not for classification")


def of_training(architecture: str, arguments: Mapping[str, object]) -> TimmConfig:
    """Describe a network from the arguments that timm's training script saves in its checkpoints."""
    args: dict[str, Any] = {}
    size = arguments.get("input_size")
    if isinstance(size, list | tuple) and len(size) == 3:
        args["img_size"] = tuple(size[1:])
    elif isinstance(arguments.get("img_size"), int):
        args["img_size"] = (arguments["img_size"],) * 2
    if isinstance(arguments.get("gp"), str):
        args["global_pool"] = arguments["gp"]
    more = arguments.get("model_kwargs")
    if isinstance(more, Mapping):
        args |= {name: value for name, value in more.items() if name not in _NOT_ARGUMENTS}
    card = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    changed = {name: arguments[name] for name in _OF_DATA if arguments.get(name)}
    own = {} if card is None else {name: getattr(card, name) for name in _TAKEN}
    return TimmConfig(
        architecture=architecture,
        model_args=args,
        pretrained_cfg={**own, **changed, "architecture": architecture.split(".")[0]},
    )
