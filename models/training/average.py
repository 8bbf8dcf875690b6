"""`trimvit average`: average the weights of several checkpoints (a model soup, arXiv 2203.05482, section 2).

Runs that start from each other or from the same weights lie in the same loss basin. Their mean costs the same
to serve as any one of them, and is often more accurate than each.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from models.load import HEADS, Card, ModelError, dtypes_of, load, save
from models.training.config import AverageConfig
from models.training.outputs import check_output_file

_OF_THE_NETWORK = (
    "architecture",
    "model_args",
    "input",
    "stages",
    "patch_stride",
    "life_block",
    "paca",
    "static_blocks",
    "pool_blocks",
)
_OF_THE_HEAD = ("labels", "scores")


def average(config: AverageConfig) -> None:
    """Write the weighted mean of the checkpoints, in their dtype, or in a dtype that can represent all of
    theirs. The head is the mean of the heads of ``config.models``.

    Raises OutputError, and ModelError if the checkpoints differ in anything but their weights (``backbones``
    may also differ in their labels).
    """
    check_output_file(config.output)
    paths = (*config.models, *config.backbones)
    loaded = [load(str(path)) for path in paths]
    cards = [model.card for model in loaded]
    for at, (path, card) in enumerate(zip(paths, cards, strict=True)):
        with_head = at < len(config.models)
        _check_alike(path, card, paths[0], cards[0], with_head=with_head)
    states: list[Mapping[str, Tensor]] = [model.model.vit.state_dict() for model in loaded]
    states[len(config.models) :] = map(_without_head, states[len(config.models) :])
    dtypes = [dtypes_of(state) for state in states]
    widest = {
        name: reduce(torch.promote_types, (of[name] for of in dtypes if name in of)) for name in states[0]
    }
    weights = config.weights or (1.0,) * len(paths)
    vit = loaded[0].model.vit
    with torch.no_grad():
        vit.load_state_dict({name: _mean(name, states, weights) for name in states[0]})
    origin: dict[str, object] = {"mean_of": [dict(card.origin) for card in cards]}
    if config.weights is not None:
        origin["weights"] = list(config.weights)
    # The cascades were fitted for the original weights.
    save(config.output, vit, replace(cards[0], cascade=None, origin=origin), widest)


def _check_alike(path: Path, card: Card, first_path: Path, first: Card, *, with_head: bool) -> None:
    """Raise ModelError if the network, or with ``with_head`` what its outputs mean, differs."""
    for what in (*_OF_THE_NETWORK, *(_OF_THE_HEAD if with_head else ())):
        here, there = getattr(card, what), getattr(first, what)
        if what == "model_args":
            here, there = _without_sizes(here), _without_sizes(there)
        if here != there:
            raise ModelError(f"{path} and {first_path} differ in their {what}")


def _without_sizes(model_args: Mapping[str, object]) -> dict[str, object]:
    """Leave out the numbers of classes and channels, which the labels and the input say better: some
    checkpoints do not store the usual three channels."""
    return {name: value for name, value in model_args.items() if name not in ("num_classes", "in_chans")}


def _without_head(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith(HEADS)}


def _mean(name: str, states: list[Mapping[str, Tensor]], weights: tuple[float, ...]) -> Tensor:
    """Return the weighted mean of a tensor over the checkpoints that have it, computed in float64, so that
    the order of the checkpoints does not matter."""
    parts = [(state[name], weight) for state, weight in zip(states, weights, strict=True) if name in state]
    total = sum(weight for _, weight in parts)
    mean = torch.stack([tensor.double() * (weight / total) for tensor, weight in parts]).sum(dim=0)
    return mean.to(parts[0][0].dtype)
