"""Read and write TrimViT checkpoints: safetensors files with a card in the header.

The card holds what the weights do not: how to build the network, its input, its labels, and how it is
pruned.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from models.cascade import Cascade
from models.families import Network
from models.files import write_whole
from models.load.errors import ModelError
from models.load.files import is_safetensors, of_safetensors
from models.load.folder import weights_in
from models.paca import Paca
from models.schedule import Criterion, Reducer, Stages
from models.scores import Scores
from models.transforms import InputSpec

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_HEADER_KEY = "trimvit"


@dataclass(frozen=True)
class Card:
    """Metadata stored with the weights: how to build the network, its input, labels, default pruning method
    and origin.

    ``patch_stride``: pixels from one patch to the next; None if patches do not overlap. ``folders``: names
    of the folders of training images, in class order like the labels; None if unknown. ``scores``: how
    logits become scores. ``life_block``: the block (0-based) for which the life predictor was made
    (models.life); None without one. ``paca``: the blocks that attend to clusters of patches
    (models.clusters); None without any. ``static_blocks``: how many of the first blocks have static
    attention (models.static_attention). ``pool_blocks``: the blocks (0-based) with learned queries for the
    reducer `pool` (models.token_pool); None without any.
    """

    architecture: str
    labels: tuple[str, ...]
    input: InputSpec
    stages: Stages
    criterion: Criterion = "variance"
    reducer: Reducer = "drop"
    cascade: Cascade | None = None
    model_args: Mapping[str, object] = field(default_factory=dict)
    origin: Mapping[str, object] = field(default_factory=dict)
    patch_stride: int | None = None
    folders: tuple[str, ...] | None = None
    scores: Scores = "softmax"
    life_block: int | None = None
    paca: Paca | None = None
    static_blocks: int = 0
    pool_blocks: tuple[int, ...] | None = None


@cache
def _cards() -> "TypeAdapter[Card]":
    """Return the JSON converter for cards. pydantic is imported lazily, so that a machine with only PyTorch
    and timm can run timm networks (benchmarks.gpu_check)."""
    from pydantic import TypeAdapter

    return TypeAdapter(Card)


def read_card(path: Path) -> Card | None:
    """Read the card from the header of a safetensors file, or of the weights file in a folder. Returns None
    if the header has no card, and for other file formats. Raises ModelError if the file or its header cannot
    be read."""
    if path.is_dir():
        path = weights_in(path)
    if path.name.endswith(".json") or not is_safetensors(path):
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER_KEY)
    except (OSError, SafetensorError) as error:
        raise of_safetensors(path, error) from error
    if header is None:
        return None
    from pydantic import ValidationError

    try:
        return _cards().validate_json(header)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ModelError(
            f"the TrimViT header of {path.name} is not valid: {f'{where}: ' if where else ''}{first['msg']}; "
            "write the checkpoint again with this version's `trimvit train`, `average` or `calibrate`"
        ) from error


def save(path: Path, vit: Network, card: Card, dtypes: Mapping[str, torch.dtype] | None = None) -> None:
    """Write the weights and the card to one safetensors file, replacing an existing file atomically.

    ``dtypes`` gives the dtype for each weight by name; the default is half precision for all. A tensor with
    values outside the range of its dtype is written in float32. Raises ModelError if weights are not finite,
    for example after training has diverged.
    """
    tensors = {
        name: _within(name, tensor.detach(), torch.float16 if dtypes is None else dtypes[name])
        for name, tensor in vit.state_dict().items()
    }
    content = serialise(tensors, metadata={_HEADER_KEY: _cards().dump_json(card).decode()})
    write_whole(path, lambda file: file.write(content))


def dtypes_of(weights: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """Infer the dtypes in which weights were stored before they were loaded as float32: the narrowest that
    represent them exactly. This is bfloat16 if it fits all tensors. Otherwise it is decided per tensor:
    half precision if it fits, else the tensor's current dtype."""
    if all(_holds(torch.bfloat16, tensor) for tensor in weights.values()):
        return dict.fromkeys(weights, torch.bfloat16)
    return {
        name: torch.float16 if _holds(torch.float16, tensor) else tensor.dtype
        for name, tensor in weights.items()
    }


def _holds(dtype: torch.dtype, tensor: Tensor) -> bool:
    return torch.equal(tensor.to(dtype).to(tensor.dtype), tensor)


def _within(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    cast = tensor.to(dtype)
    if torch.isfinite(cast).all():
        return cast.contiguous()
    if not torch.isfinite(tensor).all():
        raise ModelError(
            f"the weights are not written: {name} has values that are NaN or infinite, so the training has "
            "diverged; train again with a lower learning rate"
        )
    return tensor.float().contiguous()
