"""The models that can be served here, and the cost of an image with each.

Networks are built on PyTorch's meta device, where tensors have shapes but no values. Weights are only read
from files and folders without a TrimViT header.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from huggingface_hub import constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound
from timm.models import is_model_in_modules

from models.bundled import BUNDLED_MODELS, WEIGHTS_FOLDER
from models.clusters import add_clusters
from models.families import Network, UnsupportedModelError
from models.load import Card, ModelError, load, read_card
from models.load.reference import WEIGHT_ENDINGS, located
from models.load.timm_models import build, is_projection
from models.load.transformers_format.config import TransformersConfig
from models.load.transformers_format.config import config_in as transformers_config_in
from models.load.transformers_format.preprocessor import input_spec
from models.patch_embed import set_patch_stride
from models.pruned_vit import PrunedViT
from models.schedule import Architecture, Stages
from models.static_attention import make_static
from models.token_pool import add_pools

Source = Literal["bundled", "cached", "hub", "file"]

# The timm modules that contain the classes that TrimViT prunes.
_MODULES = ("deit", "eva", "vision_transformer")
_WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that can be served as ``reference``.

    ``source``: where its weights are. ``image_size``: height and width in pixels. ``arch`` and ``stages``
    determine its token counts and its cost.
    """

    reference: str
    source: Source
    image_size: tuple[int, int]
    classes: int
    arch: Architecture
    stages: Stages


@dataclass(frozen=True, slots=True)
class Candidate:
    """A reference that may be servable.

    ``build`` creates its network without weights, to find out. ``name``: timm's name of the model, with the
    tag of its weights; empty for models that do not come from timm.
    """

    reference: str
    source: Source
    build: Callable[[], Network]
    stages: Stages | None = None
    name: str = ""

    def entry(self) -> Entry | None:
        """Build the network and describe it. None if it cannot be pruned, or has features but no classes."""
        try:
            with torch.device("meta"):
                vit = self.build()
                model = PrunedViT(vit, self.stages)
        except (UnsupportedModelError, ModelError, RuntimeError, TypeError):
            return None
        if vit.num_classes == 0 or is_projection(self.name, vit.num_classes):
            return None
        size = tuple(vit.patch_embed.img_size)
        return Entry(self.reference, self.source, size, vit.num_classes, model.arch, model.stages)


def candidates(patterns: Sequence[str] = (), architecture: str | None = None) -> list[Candidate]:
    """List the models that may be servable: the bundled ones and those in the hub's local cache.

    With ``patterns`` (shell-style: * and ?), return those of them, and of all timm models with weights, whose
    reference matches a pattern. A pattern may also be the path of a file or folder; ``architecture`` is then
    its timm architecture, if it does not name one itself.

    Raises ModelError and UnsupportedModelError for a file or folder that cannot be served.
    """
    files = [pattern for pattern in patterns if _is_path(pattern)]
    wanted = [pattern for pattern in patterns if pattern not in files]
    found = [_of_path(file, architecture) for file in files]
    if files and not wanted:
        return found
    here = [*map(_of_bundled, BUNDLED_MODELS), *_cached()]
    if not wanted:
        return here
    known = {candidate.reference for candidate in here}
    on_hub = [_of_timm(name, "hub") for name in _timm_names() if name not in known]
    return found + [
        candidate
        for candidate in here + on_hub
        if any(fnmatch(candidate.reference, pattern) for pattern in wanted)
    ]


def _timm_names() -> Iterator[str]:
    for module in _MODULES:
        yield from timm.list_models(module=module, pretrained=True)


def _is_path(pattern: str) -> bool:
    if any(sign in pattern for sign in "*?"):
        return False
    return pattern.endswith(WEIGHT_ENDINGS) or isinstance(_located(pattern), Path)


def _located(pattern: str) -> Path | str:
    """Like `located`, but return a pattern that is not a valid reference unchanged, since it may be part of a
    name. Raises ModelError if it looks like a path."""
    try:
        return located(pattern)
    except ModelError:
        if "/" in pattern or pattern.startswith(("~", "local-dir:", "file:")):
            raise
        return pattern


def _of_path(reference: str, architecture: str | None) -> Candidate:
    path = located(reference)
    card = read_card(path) if isinstance(path, Path) else None
    if card is not None:
        return Candidate(reference, "file", lambda: _build_card(card), card.stages)
    loaded = load(reference, architecture=architecture)
    return Candidate(reference, "file", lambda: loaded.model.vit, loaded.model.stages)


def _of_bundled(name: str) -> Candidate:
    card = read_card(WEIGHTS_FOLDER / f"{name}.safetensors")
    assert card is not None
    return Candidate(name, "bundled", lambda: _build_card(card), card.stages)


def _build_card(card: Card) -> Network:
    vit = _build(card.architecture, **card.model_args)
    if card.patch_stride is not None:
        set_patch_stride(vit, card.patch_stride)
    if card.paca is not None:
        add_clusters(tuple(vit.blocks), card.paca, vit.embed_dim)
    make_static(vit, card.static_blocks)
    if card.pool_blocks is not None:
        add_pools(tuple(vit.blocks), card.pool_blocks, vit.embed_dim, vit.patch_embed.grid_size)
    return vit


def _of_timm(name: str, source: Source) -> Candidate:
    return Candidate(name, source, lambda: _build(name), name=name)


def _build(architecture: str, **model_args: Any) -> Network:
    if not is_model_in_modules(architecture.partition(".")[0], ("eva",)):  # Eva has no such argument
        # Skip the initialisation, which takes most of the time and is not needed without weights.
        model_args["weight_init"] = "skip"
    vit: Network = build(architecture, **model_args)
    return vit


def _cached() -> list[Candidate]:
    """The models whose weights are in the hub's local cache: timm models by timm's name, others by hub id."""
    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    folders = {}
    for repository in repositories:
        newest = max(repository.revisions, key=lambda each: each.last_modified, default=None)
        if repository.repo_type != "model" or newest is None:
            continue
        if any(file.file_path.suffix in _WEIGHTS for file in newest.files):
            folders[repository.repo_id] = newest.snapshot_path
    found, of_timm = [], set()
    for name in _timm_names():
        config = timm.get_pretrained_cfg(name)
        if config is not None and config.hf_hub_id in folders:
            of_timm.add(config.hf_hub_id)
            found.append(_of_timm(name, "cached"))
    for hub_id in sorted(folders.keys() - of_timm):
        build = _from_config(folders[hub_id])
        if build is not None:
            found.append(Candidate(f"hf-hub:{hub_id}", "cached", build))
    return found


def _from_config(folder: Path) -> Callable[[], Network] | None:
    """A function that builds the network described by a folder's config.json. None if the config is neither
    timm's nor that of a supported transformers classifier."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if isinstance(content, dict) and timm.is_model(str(content.get("architecture"))):
            return lambda: _build(f"local-dir:{folder}")
        config = transformers_config_in(folder)
        return None if config is None else lambda: _build_transformers(folder, config)
    except (OSError, ValueError):
        return None


def _build_transformers(folder: Path, config: TransformersConfig) -> Network:
    args = {**config.args, "img_size": input_spec(folder, config).size, "num_classes": config.classes}
    return _build(config.kind.architecture, **args)
