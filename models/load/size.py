"""Estimate the size of a model's weights in float32 before loading it."""

import math
from pathlib import Path

import timm
import torch
from huggingface_hub import scan_cache_dir
from huggingface_hub.errors import CacheNotFound
from safetensors import SafetensorError, safe_open

from models.load.files import is_safetensors, shards_in
from models.load.folder import weights_in
from models.load.reference import located

_HUB = "hf-hub:"
_BYTES = 4  # per float32 number


def float32_bytes(reference: str) -> int | None:
    """Return the size of a model's weights in float32, in bytes. For files other than safetensors, and for
    models in the hub's cache, this is a file size. Returns None for a hub model that is not in the local
    cache.

    Raises ModelError if the model does not exist, and OSError if it cannot be read.
    """
    place = located(reference)
    if isinstance(place, Path):
        return _of_path(place)
    if place.startswith(_HUB):
        return _of_cache(place.removeprefix(_HUB).partition("@")[0])
    with torch.device("meta"):  # shapes only, no memory for weights
        network = timm.create_model(place, pretrained=False)
    return _BYTES * sum(parameter.numel() for parameter in network.parameters())


def _of_path(path: Path) -> int:
    file = weights_in(path) if path.is_dir() else path
    if file.name.endswith(".index.json"):
        return sum(_of_file(file.parent / shard) for shard in shards_in(file))
    return _of_file(file)


def _of_file(file: Path) -> int:
    return _BYTES * _numbers_in(file) if is_safetensors(file) else file.stat().st_size


def _numbers_in(file: Path) -> int:
    """Return the number of elements in all tensors of a safetensors file, or 0 if it is corrupt (loading it
    raises a clear error later)."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except SafetensorError:
        return 0


def _of_cache(repository: str) -> int | None:
    """Return the size of a repository's largest file in the hub's local cache; None if it is not cached."""
    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return None
    files = [
        file.size_on_disk
        for each in repositories
        if each.repo_id == repository
        for revision in each.revisions
        for file in revision.files
    ]
    return max(files, default=None)
