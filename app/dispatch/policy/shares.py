"""What an image will cost, as a share of the unpruned model's compute, before it is computed."""

from functools import lru_cache

from app.dispatch.policy.brown_out import DEPTHS, ratios
from app.messages.image import Ask
from app.messages.model import ModelInfo
from models.schedule import Architecture, Reducer, Stages, compute, macs


def shares(info: ModelInfo, ask: Ask) -> tuple[float, ...]:
    """The share at every depth of a brown-out.

    What `keep_mass` will keep is not known yet: it counts as unpruned, the most that it can come to. A
    cascade counts as what its images cost on average when it was calibrated.
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
    """What an image of that share counts in queue and batch: as many of the model's tokens."""
    return max(1, round((info.architecture.patches + info.architecture.prefix_tokens) * share))


def unpruned_macs(info: ModelInfo) -> int:
    """Multiply-accumulates of an image that is not pruned."""
    arch, stages = info.architecture, info.method.stages
    return macs(arch, stages, (arch.patches,) * len(stages.blocks))
