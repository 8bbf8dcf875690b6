"""How and where patches are pruned, how many are kept there, and what that costs.

Pure Python: the front end, the scheduler and the model all use these functions, so every length in a batch is
known on the host before anything is launched.

Above 300 lines: counts follow from a pruning, costs from counts, and a keep ratio is solved for a cost, so
one chain of formulas is in one place.
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
# They find by themselves what becomes of patches: the importance of patches is not read.
WITHOUT_CRITERION: tuple[Reducer, ...] = ("merge", "pool")

# keep_ratio is solved on this grid, so that a ratio found for a `compute` prints shortly and exactly.
_RATIO_STEPS = 10_000
# Answers kept for ratios and shares that come again. Clients choose them: what is kept must stay small
# whatever they ask for.
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
    """The numbers of a ViT that its token counts and MACs follow from.

    ``grid`` is (rows, columns) of patches, ``prefix_tokens`` counts CLS, distillation and register
    tokens, ``patch_inputs`` is the number of values one patch embedding reads (channels * kernel area).
    ``paca``: blocks that attend to clusters; ``static_blocks``: first blocks with static attention.
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

    ``evenly``: after the last stage as many patches are left as if each kept a share of them, but every stage
    takes away as many as any other (ToMe's constant schedule, arXiv 2210.09461, section 3).
    """

    blocks: tuple[int, ...]
    rows: Rows = "cls"
    evenly: bool = False

    def __post_init__(self) -> None:
        if list(self.blocks) != sorted(set(self.blocks)) or any(block < 0 for block in self.blocks):
            raise ValueError(f"stages must be ascending block indices from 0, got {self.blocks}")
        _one_of("rows", self.rows, ROWS)

    def fitting(self, depth: int) -> "Stages":
        """These stages, or ValueError if one lies beyond a model of ``depth`` blocks."""
        if self.blocks and self.blocks[-1] >= depth:
            raise ValueError(
                f"stage in block {self.blocks[-1] + 1}, but the model has {depth} blocks (counted from 1)"
            )
        return self

    def keep_counts(self, patches: int, keep_ratio: float) -> tuple[int, ...]:
        """Patches left after each stage, starting from ``patches``."""
        return keep_counts(patches, keep_ratio, len(self.blocks), self.evenly)

    def allowing(self, pruning: "Pruning") -> "Pruning":
        """The pruning, or ValueError for one that these stages cannot do."""
        if self.evenly and pruning.keep_mass is not None:
            raise ValueError(
                "keep_mass sets the number of patches of the first stage, but all stages of this model "
                "remove the same number; use keep_ratio or compute"
            )
        return pruning


@dataclass(frozen=True, slots=True)
class Method:
    """The method of pruning without the keep ratio: where patches are pruned, by which criterion, and with
    which reducer.

    A checkpoint has a default method; a request may name another criterion or reducer. `merge` (ToMe) finds
    pairs by their keys, and `pool` weighs by learned queries: they use no criterion.
    """

    stages: Stages
    criterion: Criterion = "variance"
    reducer: Reducer = "drop"

    def __post_init__(self) -> None:
        _one_of("criterion", self.criterion, CRITERIA)
        _one_of("reducer", self.reducer, REDUCERS)

    @property
    def name(self) -> str:
        """What tables and plots call it: `mad`, `mad+fuse`, `merge`."""
        return method_name(self.criterion, self.reducer)


def method_name(criterion: Criterion, reducer: Reducer) -> str:
    """The criterion; with its reducer, if that is not plain dropping; `merge` and `pool` alone, which read
    none."""
    if reducer in WITHOUT_CRITERION:
        return reducer
    return criterion if reducer == "drop" else f"{criterion}+{reducer}"


@dataclass(frozen=True, slots=True)
class Pruning:
    """The pruning of one image. Raises ValueError for invalid values.

    ``keep_mass`` replaces ``keep_ratio``: the first stage keeps the fewest patches that contain that share of
    the image's total importance, and the resulting share of patches is the image's keep ratio at the later
    stages. ``seed`` is only used by the `random` criterion.
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
        """Whether any patch can be lost."""
        return self.keep_ratio < 1 or self.keep_mass is not None


UNPRUNED = Pruning()


def default_stages(depth: int, rows: Rows = "cls") -> Stages:
    """Blocks 4, 7 and 10 of 12 (1-based; EViT, arXiv 2202.07800, section 4.1), scaled to ``depth``."""
    return Stages(tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)})), rows)


def every_block(depth: int, rows: Rows = "cls") -> Stages:
    """A few patches in every block."""
    return Stages(tuple(range(depth)), rows, evenly=True)


def keep_count(patches: int, keep_ratio: float) -> int:
    """``ceil(keep_ratio * patches)``, at least 1.

    The product is rounded to 9 decimals first, so that 0.1 * 30 keeps 3 and not 4.
    """
    return max(1, math.ceil(round(keep_ratio * patches, 9)))


@lru_cache(maxsize=_MOST_REMEMBERED)
def keep_counts(patches: int, keep_ratio: float, stages: int, evenly: bool = False) -> tuple[int, ...]:
    """Patches left after each of ``stages`` stages, starting from ``patches``.

    ``evenly``: ``ceil(keep_ratio ** stages * patches)`` after the last one, and the stages differ by one
    patch at most in what they take away.
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
    """Tokens of an image after each stage that leaves ``counts[s]`` patches.

    They are prefix tokens, patches and, with the reducer `fuse`, one fused token of each stage so far that
    took patches away.
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

    A block costs 4TC^2 + 2T^2C for attention and 2TCM for the MLP (8TC^2 where M = 4C); a stage prunes
    between the two. Norms, softmax, the criterion and the matching of `merge` are not counted, as in EViT's
    table 1. This is the field's count: that a stage's block computes queries and outputs for the kept
    patches only is not taken off. What attention to clusters costs is in paca.py, what static attention costs
    in static_blocks.py, and what `pool` and `transform` cost in reducer_macs.py.
    From ``first_block`` on (0: with the patch embedding).
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
    """Share of the unpruned model's MACs that one image costs at ``keep_ratio``; 1.0 at ratio 1. Only `pool`
    and `transform` may cost more than that, where they leave almost as many tokens as there were."""
    counts = stages.keep_counts(arch.patches, keep_ratio)
    return compute_of_counts(arch, stages, counts, reducer)


def compute_of_counts(
    arch: Architecture,
    stages: Stages,
    counts: tuple[int, ...],
    reducer: Reducer = "drop",
    first_block: int = 0,
) -> float:
    """`macs` as a share of the unpruned model's."""
    unpruned = (arch.patches,) * len(stages.blocks)
    return macs(arch, stages, counts, reducer, first_block) / macs(arch, stages, unpruned)


@lru_cache(maxsize=_MOST_REMEMBERED)
def keep_ratio_for(arch: Architecture, stages: Stages, share: float, reducer: Reducer = "drop") -> float:
    """The largest keep ratio (in steps of 0.0001) whose ``compute`` is at most ``share``.

    Raises UnreachableComputeError if even one patch a stage costs more, ValueError outside (0, 1].
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
    # `compute` never falls as the ratio rises (but if it is above 1 or nearly so, with `pool` and
    # `transform`), so the last step that fits is found by halving.
    while low < high:
        middle = (low + high + 1) // 2
        if compute(arch, stages, middle / _RATIO_STEPS, reducer) <= share:
            low = middle
        else:
            high = middle - 1
    return low / _RATIO_STEPS
