"""`trimvit average`: average the weights of several checkpoints (a model soup, arXiv 2203.05482, section 2).

Runs that start from each other or from the same weights lie in the same loss basin. Their mean costs the same
to serve as any one of them, and is often more accurate than each.
"""

from dataclasses import replace
from functools import reduce

import torch

from models.load import ModelError, dtypes_of, load, save
from models.training.config import AverageConfig
from models.training.outputs import check_output_file


def average(config: AverageConfig) -> None:
    """Write the uniform mean of the checkpoints, in their dtype, or in a dtype that can represent all of
    theirs. Raises OutputError, and ModelError if the checkpoints differ in anything but their weights."""
    check_output_file(config.output)
    loaded = [load(str(path)) for path in config.models]
    cards = [model.card for model in loaded]
    for path, card in zip(config.models, cards, strict=True):
        for what in (
            "architecture",
            "model_args",
            "labels",
            "input",
            "stages",
            "patch_stride",
            "scores",
            "life_block",
            "paca",
            "static_blocks",
            "pool_blocks",
        ):
            if getattr(card, what) != getattr(cards[0], what):
                raise ModelError(f"{path} and {config.models[0]} differ in their {what}")
    states = [model.model.vit.state_dict() for model in loaded]
    dtypes = [dtypes_of(state) for state in states]
    widest = {name: reduce(torch.promote_types, (of[name] for of in dtypes)) for name in states[0]}
    vit = loaded[0].model.vit
    with torch.no_grad():
        # Averaged in float64, so that the order of the checkpoints does not matter.
        vit.load_state_dict(
            {
                name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(tensor.dtype)
                for name, tensor in states[0].items()
            }
        )
    # The cascades were fitted for the original weights.
    card = replace(cards[0], cascade=None, origin={"mean_of": [dict(card.origin) for card in cards]})
    save(config.output, vit, card, widest)
