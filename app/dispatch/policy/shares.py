"""The cost of an image before it is computed, as a share of the unpruned model's compute."""

from functools import lru_cache

from app.dispatch.policy.brown_out import DEPTHS, ratios
from app.messages.image import Ask
from app.messages.model import ModelInfo
from models.schedule import Architecture, Reducer, Stages, compute, macs


def shares(info: ModelInfo, ask: Ask) -> tuple[float, ...]:
    """The share at every depth of a brown-out.

    With `keep_mass`, the share is not known in advance: the image counts as unpruned, which is the maximum.
    With a cascade, it counts as the mean cost of its calibration.
    """
    pruning = ask.pruning
    if ask.margin is not None and info.cascade is not None:
        return (info.cascade.compute,) * DEPTHS
    if pruning.keep_mass is not None:
        return (1.0,) * DEPTHS
    arch, stages = info.architecture, info.method.stages
    return _shares_of(arch, stages, pruning.keep_ratio, ask.min_keep_ratio, pruning.reducer)


@lru_cache(maxsize=4096)
def _shares_of(
    arch: Architecture, stages: Stages, asked: float, floor: float | None, reducer: Reducer
) -> tuple[float, ...]:
    return tuple(compute(arch, stages, ratio, reducer) for ratio in ratios(asked, floor))


def tokens(info: ModelInfo, share: float) -> int:
    """The weight of an image with that share in queue and batch: that share of the model's tokens."""
    return max(1, round((info.architecture.patches + info.architecture.prefix_tokens) * share))


def unpruned_macs(info: ModelInfo) -> int:
    """Multiply-accumulates of an unpruned image."""
    arch, stages = info.architecture, info.method.stages
    return macs(arch, stages, (arch.patches,) * len(stages.blocks))
