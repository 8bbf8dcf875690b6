"""Where and how patches are pruned, how many are kept, and the cost.

Pure Python: the front end, the scheduler and the model all use these functions, so every length in a batch is
known on the host before any kernel is launched.

Above 300 lines: the formulas form one chain, because counts follow from a pruning, costs from counts, and a
keep ratio is solved for a cost.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Literal, get_args

from models import static_blocks as static
from models.paca import Paca, attention_macs
from models.reducer_macs import reducer_macs

Criterion = Literal[
    "variance",
    "mad",
    "iqr",
    "mean",
    "mean_value_norm",
    "renyi_half",
    "renyi_1",
    "renyi_2",
    "renyi_inf",
    "column_l2",
    "life",
    "random",
]
Rows = Literal["cls", "all"]
Reducer = Literal["drop", "fuse", "merge", "pool", "transform"]

CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
ROWS: tuple[Rows, ...] = get_args(Rows)
REDUCERS: tuple[Reducer, ...] = get_args(Reducer)
# Reducers that do not use the importance of patches.
WITHOUT_CRITERION: tuple[Reducer, ...] = ("merge", "pool")

# keep_ratio is solved on this grid, so that the ratio for a `compute` has a short and exact decimal form.
_RATIO_STEPS = 10_000
# The size of the caches by ratio and by share. Clients choose these values, so the caches must be bounded.
_MOST_REMEMBERED = 4096


def _share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


class UnreachableComputeError(ValueError):
    """No keep ratio reduces the cost to the requested share of MACs."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The dimensions of a ViT that determine its token counts and MACs.

    ``grid`` is (rows, columns) of patches, ``prefix_tokens`` counts CLS, distillation and register
    tokens, ``patch_inputs`` is the number of values that one patch embedding reads (channels * kernel area).
    ``paca``: the blocks that attend to clusters. ``static_blocks``: how many of the first blocks have static
    attention.
    """

    depth: int
    dim: int
    mlp_dim: int
    grid: tuple[int, int]
    prefix_tokens: int
    patch_inputs: int
    classes: int
    paca: Paca | None = None
    static_blocks: int = 0

    @property
    def patches(self) -> int:
        """Patches of an unpruned image."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Tokens of an unpruned image."""
        return self.prefix_tokens + self.patches

    @property
    def static_numbers(self) -> list[int]:
        """The blocks with static attention, counted from 1."""
        return list(range(1, self.static_blocks + 1))

    @property
    def cluster_numbers(self) -> list[int]:
        """The blocks that attend to clusters, counted from 1."""
        return [] if self.paca is None else [block + 1 for block in self.paca.blocks]


@dataclass(frozen=True, slots=True)
class Stages:
    """The blocks (0-based, ascending) in which patches are pruned, and the attention rows that decide.

    ``evenly``: every stage removes the same number of patches instead of the same share, so that equally many
    are left after the last stage (ToMe's constant schedule, arXiv 2210.09461, section 3).
    """

    blocks: tuple[int, ...]
    rows: Rows = "cls"
    evenly: bool = False

    def __post_init__(self) -> None:
        if list(self.blocks) != sorted(set(self.blocks)) or any(block < 0 for block in self.blocks):
            raise ValueError(f"stages must be ascending block indices from 0, got {self.blocks}")
        _one_of("rows", self.rows, ROWS)

    def fitting(self, depth: int) -> "Stages":
        """Return self. Raises ValueError for a stage in a block that a model of ``depth`` blocks lacks."""
        if self.blocks and self.blocks[-1] >= depth:
            raise ValueError(
                f"stage in block {self.blocks[-1] + 1}, but the model has {depth} blocks (counted from 1)"
            )
        return self

    def keep_counts(self, patches: int, keep_ratio: float) -> tuple[int, ...]:
        """Patches left after each stage, starting from ``patches``."""
        return keep_counts(patches, keep_ratio, len(self.blocks), self.evenly)

    def allowing(self, pruning: "Pruning") -> "Pruning":
        """Return ``pruning``. Raises ValueError if these stages do not support it."""
        if self.evenly and pruning.keep_mass is not None:
            raise ValueError(
                "keep_mass sets the number of patches of the first stage, but all stages of this model "
                "remove the same number; use keep_ratio or compute"
            )
        return pruning


@dataclass(frozen=True, slots=True)
class Method:
    """A pruning method without its keep ratio: the stages, the criterion and the reducer.

    A checkpoint has a default method; a request may choose another criterion or reducer. `merge` (ToMe)
    matches pairs by their keys and `pool` uses learned queries, so they ignore the criterion.
    """

    stages: Stages
    criterion: Criterion = "variance"
    reducer: Reducer = "drop"

    def __post_init__(self) -> None:
        _one_of("criterion", self.criterion, CRITERIA)
        _one_of("reducer", self.reducer, REDUCERS)

    @property
    def name(self) -> str:
        """The name in tables and plots, such as `mad`, `mad+fuse` or `merge`."""
        return method_name(self.criterion, self.reducer)

    def pruning(self, keep_ratio: float) -> "Pruning":
        """Prune an image in this way at a keep ratio."""
        return Pruning(keep_ratio, self.criterion, self.reducer)


def method_name(criterion: Criterion, reducer: Reducer) -> str:
    """The name of a method: the criterion, followed by the reducer unless it is `drop`; only the reducer for
    `merge` and `pool`, which use no criterion."""
    if reducer in WITHOUT_CRITERION:
        return reducer
    return criterion if reducer == "drop" else f"{criterion}+{reducer}"


@dataclass(frozen=True, slots=True)
class Pruning:
    """The pruning of one image. Raises ValueError for invalid values.

    ``keep_mass`` replaces ``keep_ratio``: the first stage keeps the fewest patches that contain this share of
    the image's total importance, and the resulting share of patches is the image's keep ratio at the later
    stages. ``seed`` is only used by the criterion `random`.
    """

    keep_ratio: float = 1.0
    criterion: Criterion = "variance"
    reducer: Reducer = "drop"
    seed: int = 0
    keep_mass: float | None = None

    def __post_init__(self) -> None:
        _share("keep_ratio", self.keep_ratio)
        _one_of("criterion", self.criterion, CRITERIA)
        _one_of("reducer", self.reducer, REDUCERS)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2**63 - 1, got {self.seed}")
        if self.keep_mass is None:
            return
        _share("keep_mass", self.keep_mass)
        if self.keep_ratio != 1:
            raise ValueError("give keep_ratio or keep_mass, not both")
        if self.reducer in WITHOUT_CRITERION:
            raise ValueError(
                "keep_mass needs the importance of patches, which the reducer "
                f"{self.reducer} does not compute; use drop, fuse or transform"
            )

    @property
    def prunes(self) -> bool:
        """Whether any patch can be removed."""
        return self.keep_ratio < 1 or self.keep_mass is not None


UNPRUNED = Pruning()


def default_stages(depth: int, rows: Rows = "cls") -> Stages:
    """The default stages: blocks 4, 7 and 10 of 12 (1-based; EViT, arXiv 2202.07800, section 4.1), scaled to
    ``depth``."""
    return Stages(tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)})), rows)


def every_block(depth: int, rows: Rows = "cls") -> Stages:
    """Stages in all blocks, each of which removes the same number of patches."""
    return Stages(tuple(range(depth)), rows, evenly=True)


def keep_count(patches: int, keep_ratio: float) -> int:
    """The number of patches that a stage keeps: ``ceil(keep_ratio * patches)``, at least 1.

    The product is rounded to 9 decimals first, so that 0.1 * 30 keeps 3 and not 4.
    """
    return max(1, math.ceil(round(keep_ratio * patches, 9)))


@lru_cache(maxsize=_MOST_REMEMBERED)
def keep_counts(patches: int, keep_ratio: float, stages: int, evenly: bool = False) -> tuple[int, ...]:
    """Patches left after each of ``stages`` stages, starting from ``patches``.

    ``evenly``: ``ceil(keep_ratio ** stages * patches)`` are left after the last stage, and the numbers of
    patches that the stages remove differ by at most one.
    """
    _share("keep_ratio", keep_ratio)
    if evenly:
        lost = patches - keep_count(patches, keep_ratio**stages)
        return tuple(patches - lost * stage // stages for stage in range(1, stages + 1))
    counts = []
    for _ in range(stages):
        patches = keep_count(patches, keep_ratio)
        counts.append(patches)
    return tuple(counts)


def tokens_after(arch: Architecture, counts: tuple[int, ...], reducer: Reducer = "drop") -> tuple[int, ...]:
    """The number of tokens of an image after each stage, if stage s leaves ``counts[s]`` patches.

    These are the prefix tokens, the patches and, with the reducer `fuse`, one fused token for each stage so
    far that removed patches.
    """
    before = (arch.patches, *counts)[: len(counts)]
    fused = accumulate(
        int(reducer == "fuse" and count < left) for left, count in zip(before, counts, strict=True)
    )
    return tuple(arch.prefix_tokens + count + extra for count, extra in zip(counts, fused, strict=True))


def macs(
    arch: Architecture,
    stages: Stages,
    counts: tuple[int, ...],
    reducer: Reducer = "drop",
    first_block: int = 0,
) -> int:
    """Multiply-accumulates of one image that keeps ``counts[s]`` patches at stage s.

    With T tokens, C = dim and M = mlp_dim, a block costs 4TC^2 + 2T^2C for attention and 2TCM for the MLP
    (8TC^2 if M = 4C); a stage prunes between the two. Norms, softmax, the criterion and the matching of
    `merge` are not counted, as in EViT's table 1. As is usual in the literature, a stage's attention counts
    in full, although queries and outputs are only computed for the kept patches. The cost of attention to
    clusters is in paca.py, that of static attention in static_blocks.py, and that of `pool` and `transform`
    in reducer_macs.py.

    ``first_block``: count from this block on; 0 includes the patch embedding.
    """
    dim = arch.dim
    tokens = arch.patches + arch.prefix_tokens
    left = dict(zip(stages.blocks, tokens_after(arch, counts, reducer), strict=True))
    reduced = dict(zip(stages.blocks, counts, strict=True))
    total = dim * arch.classes
    if first_block == 0:
        total += arch.patches * arch.patch_inputs * dim
    clustered = () if arch.paca is None else arch.paca.blocks
    for block in range(arch.depth):
        if block < arch.static_blocks:
            attention = static.attention_macs(dim, tokens)
        elif arch.paca is not None and block in clustered:
            attention = attention_macs(dim, tokens, arch.prefix_tokens, arch.paca.clusters)
        else:
            attention = 4 * tokens * dim * dim + 2 * tokens * tokens * dim
        patches = tokens - arch.prefix_tokens
        attention += reducer_macs(reducer, dim, patches, reduced.get(block, patches))
        tokens = left.get(block, tokens)
        if block >= first_block:
            total += attention + 2 * tokens * dim * arch.mlp_dim
    return total


@lru_cache(maxsize=_MOST_REMEMBERED)
def compute(arch: Architecture, stages: Stages, keep_ratio: float, reducer: Reducer = "drop") -> float:
    """The cost of one image at ``keep_ratio``, as a share of the unpruned model's MACs; 1.0 at ratio 1. Only
    `pool` and `transform` can exceed 1.0, if they remove only a few tokens."""
    counts = stages.keep_counts(arch.patches, keep_ratio)
    return compute_of_counts(arch, stages, counts, reducer)


def compute_of_counts(
    arch: Architecture,
    stages: Stages,
    counts: tuple[int, ...],
    reducer: Reducer = "drop",
    first_block: int = 0,
) -> float:
    """`macs` as a share of the unpruned model's MACs."""
    unpruned = (arch.patches,) * len(stages.blocks)
    return macs(arch, stages, counts, reducer, first_block) / macs(arch, stages, unpruned)


@lru_cache(maxsize=_MOST_REMEMBERED)
def keep_ratio_for(arch: Architecture, stages: Stages, share: float, reducer: Reducer = "drop") -> float:
    """The largest keep ratio (in steps of 0.0001) whose ``compute`` is at most ``share``.

    Raises UnreachableComputeError if even one patch per stage costs more, and ValueError if ``share`` is
    outside (0, 1].
    """
    _share("compute", share)
    if share == 1:
        return 1.0
    lowest = compute(arch, stages, 1 / _RATIO_STEPS, reducer)
    if lowest > share:
        raise UnreachableComputeError(
            f"compute {share:g} is too low: even one patch per stage costs {lowest:.3f} of the unpruned model"
        )
    low, high = 1, _RATIO_STEPS
    # Bisection works because `compute` does not decrease as the ratio increases (except for `pool` and
    # `transform`, where it is nearly 1 or above).
    while low < high:
        middle = (low + high + 1) // 2
        if compute(arch, stages, middle / _RATIO_STEPS, reducer) <= share:
            low = middle
        else:
            high = middle - 1
    return low / _RATIO_STEPS
