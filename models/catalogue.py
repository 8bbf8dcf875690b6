"""Which models can be served here, and what an image costs with each; no weights are read.

Networks are built on PyTorch's meta device, where tensors have shapes and no values.
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
from timm.models.vision_transformer import VisionTransformer

from models.patch_embed import set_patch_stride
from models.pruned_vit import PrunedViT, UnsupportedModelError
from models.schedule import Architecture, Stages
from models.zoo import BUNDLED, WEIGHTS_FOLDER, Card, ModelError, read_card

Source = Literal["bundled", "cached", "hub", "file"]

# timm's modules that have models of the classes that TrimViT prunes; the other modules' are of other classes.
_MODULES = ("deit", "vision_transformer")
_WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that can be served under ``reference``: from where its weights come, what it sees (pixels:
    height, width), how many classes it tells apart, and what its tokens and costs follow from."""

    reference: str
    source: Source
    image_size: tuple[int, int]
    classes: int
    arch: Architecture
    stages: Stages


@dataclass(frozen=True, slots=True)
class Candidate:
    """A reference that may be servable; ``build`` makes its network, without weights, to see."""

    reference: str
    source: Source
    build: Callable[[], VisionTransformer]
    stages: Stages | None = None

    def entry(self) -> Entry | None:
        """None for a model whose patches cannot be pruned, or that gives features and no classes."""
        try:
            with torch.device("meta"):
                vit = self.build()
                model = PrunedViT(vit, self.stages)
        except (UnsupportedModelError, ModelError, RuntimeError, TypeError):
            return None
        if vit.num_classes == 0:
            return None
        size = tuple(vit.patch_embed.img_size)
        return Entry(self.reference, self.source, size, vit.num_classes, model.arch, model.stages)


def candidates(patterns: Sequence[str] = ()) -> list[Candidate]:
    """What may be servable: the bundled model and what the hub's local cache has; with patterns (as file
    names have them: * and ?), those of these and of all timm models with weights whose reference fits one.
    A pattern that ends in .safetensors is a file.

    Raises ModelError for a file that is none of ours.
    """
    files = [pattern for pattern in patterns if pattern.endswith(".safetensors")]
    wanted = [pattern for pattern in patterns if pattern not in files]
    found = [_of_file(Path(file), file, "file") for file in files]
    if files and not wanted:
        return found
    here = [_of_file(WEIGHTS_FOLDER / f"{BUNDLED}.safetensors", BUNDLED, "bundled"), *_cached()]
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


def _of_file(path: Path, reference: str, source: Source) -> Candidate:
    card = read_card(path)
    if card is None:
        raise ModelError(f"{path} does not say which timm architecture it is of")
    return Candidate(reference, source, lambda: _build_card(card), card.stages)


def _build_card(card: Card) -> VisionTransformer:
    vit = _build(card.architecture, **card.model_args)
    if card.patch_stride is not None:
        set_patch_stride(vit, card.patch_stride)
    return vit


def _of_timm(name: str, source: Source) -> Candidate:
    return Candidate(name, source, lambda: _build(name))


def _build(architecture: str, **model_args: Any) -> VisionTransformer:
    # Without weights there is nothing to initialise, which is most of the time.
    vit: VisionTransformer = timm.create_model(
        architecture, pretrained=False, weight_init="skip", **model_args
    )
    return vit


def _cached() -> list[Candidate]:
    """The models whose weights are in the hub's local cache: timm's by their names, others by the hub's."""
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
    return found + [
        _of_folder(folders[hub_id], f"hf-hub:{hub_id}")
        for hub_id in sorted(folders.keys() - of_timm)
        if _is_timms(folders[hub_id] / "config.json")
    ]


def _is_timms(config: Path) -> bool:
    """Whether it is what timm writes beside weights on the hub, and not another library's."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and timm.is_model(str(content.get("architecture")))


def _of_folder(folder: Path, reference: str) -> Candidate:
    return Candidate(reference, "cached", lambda: _build(f"local-dir:{folder}"))
