"""Where patches are pruned, how many are kept there, and what that costs.

Pure Python: the front end, the scheduler and the model all count with these functions, so every
length in a batch is known on the host before anything is launched.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

Criterion = Literal["variance", "mad", "iqr", "mean", "mean_value_norm", "random"]
Rows = Literal["cls", "all"]

CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
ROWS: tuple[Rows, ...] = get_args(Rows)

# keep_ratio is solved on this grid, so that a ratio found for a `compute` prints shortly and exactly.
_RATIO_STEPS = 10_000


class UnreachableComputeError(ValueError):
    """No keep ratio brings the cost down to the share of MACs that was asked for."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The numbers of a ViT that its token counts and MACs follow from.

    ``grid`` is (rows, columns) of patches, ``prefix_tokens`` counts CLS, distillation and register
    tokens, ``patch_inputs`` is the number of values one patch embedding reads (channels * kernel area).
    """

    depth: int
    dim: int
    mlp_dim: int
    grid: tuple[int, int]
    prefix_tokens: int
    patch_inputs: int
    classes: int

    @property
    def patches(self) -> int:
        """Patches of an unpruned image."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True, slots=True)
class Stages:
    """The blocks (0-based, ascending) in which patches are pruned, and the attention rows that decide."""

    blocks: tuple[int, ...]
    rows: Rows = "cls"

    def __post_init__(self) -> None:
        if list(self.blocks) != sorted(set(self.blocks)) or any(block < 0 for block in self.blocks):
            raise ValueError(f"stages must be ascending block indices from 0, got {self.blocks}")
        if self.rows not in ROWS:
            raise ValueError(f"rows must be one of {', '.join(ROWS)}, got {self.rows!r}")

    def fitting(self, depth: int) -> "Stages":
        """These stages, or ValueError if one lies beyond a model of ``depth`` blocks."""
        if self.blocks and self.blocks[-1] >= depth:
            raise ValueError(
                f"stage in block {self.blocks[-1] + 1}, but the model has {depth} blocks (counted from 1)"
            )
        return self


def default_stages(depth: int, rows: Rows = "cls") -> Stages:
    """Blocks 4, 7 and 10 of 12 (1-based; EViT, arXiv 2202.07800, section 4.1), scaled to ``depth``."""
    return Stages(tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)})), rows)


def keep_count(patches: int, keep_ratio: float) -> int:
    """``ceil(keep_ratio * patches)``, at least 1.

    The product is rounded to 9 decimals first, so that 0.1 * 30 keeps 3 and not 4.
    """
    return max(1, math.ceil(round(keep_ratio * patches, 9)))


@lru_cache(maxsize=65_536)
def keep_counts(patches: int, keep_ratio: float, stages: int) -> tuple[int, ...]:
    """Patches left after each of ``stages`` stages, starting from ``patches``."""
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio must be above 0 and at most 1, got {keep_ratio}")
    counts = []
    for _ in range(stages):
        patches = keep_count(patches, keep_ratio)
        counts.append(patches)
    return tuple(counts)


def macs(arch: Architecture, stages: Stages, counts: tuple[int, ...]) -> int:
    """Multiply-accumulates of one image that keeps ``counts[s]`` patches at stage s.

    A block costs 4TC^2 + 2T^2C for attention and 2TCM for the MLP (8TC^2 where M = 4C); a stage prunes
    between the two. Norms, softmax and the criterion are not counted, as in EViT's table 1.
    """
    dim = arch.dim
    tokens = arch.patches + arch.prefix_tokens
    left = dict(zip(stages.blocks, counts, strict=True))
    total = arch.patches * arch.patch_inputs * dim
    for block in range(arch.depth):
        total += 4 * tokens * dim * dim + 2 * tokens * tokens * dim
        if block in left:
            tokens = left[block] + arch.prefix_tokens
        total += 2 * tokens * dim * arch.mlp_dim
    return total + dim * arch.classes


@lru_cache(maxsize=65_536)
def compute(arch: Architecture, stages: Stages, keep_ratio: float) -> float:
    """Share of the unpruned model's MACs that one image costs at ``keep_ratio``; 1.0 at ratio 1."""
    counts = keep_counts(arch.patches, keep_ratio, len(stages.blocks))
    unpruned = (arch.patches,) * len(stages.blocks)
    return macs(arch, stages, counts) / macs(arch, stages, unpruned)


@lru_cache(maxsize=65_536)
def keep_ratio_for(arch: Architecture, stages: Stages, share: float) -> float:
    """The largest keep ratio (in steps of 0.0001) whose ``compute`` is at most ``share``.

    Raises UnreachableComputeError where even one patch a stage costs more, ValueError outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"compute must be above 0 and at most 1, got {share}")
    lowest = compute(arch, stages, 1 / _RATIO_STEPS)
    if lowest > share:
        raise UnreachableComputeError(
            f"compute {share:g} cannot be reached: one patch a stage already costs {lowest:.3f} "
            "of the unpruned model"
        )
    low, high = 1, _RATIO_STEPS
    while (
        low < high
    ):  # compute never falls as the ratio rises, so the last step that fits is found by halving
        middle = (low + high + 1) // 2
        if compute(arch, stages, middle / _RATIO_STEPS) <= share:
            low = middle
        else:
            high = middle - 1
    return low / _RATIO_STEPS
