"""Plans of ragged batches with fixed shapes, as CUDA graphs need them.

A budget limits the number of images and the number of rows after each stage. All batches that fit into a
budget have plans with the same stages and the same table shapes, so they run the same kernels; only the
numbers in the tables differ. Missing images are computed up to the first stage, which leaves no token of
them. Missing rows are copies of the first image's first row. Pure functions, in numpy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int

from models.plan import End, Group, Plan, Selection, StagePlan, Table
from models.ragged import Packing, Run
from models.schedule import Architecture, Reducer, Rows, Stages

LEVELS = (1.0, 0.7, 0.5)
IMAGES = (32, 16, 8, 4, 2)
_REDUCER: Reducer = "drop"


@dataclass(frozen=True, slots=True)
class Budget:
    """At most ``images`` images, with at most ``rows[s]`` tokens in total after stage s."""

    images: int
    rows: tuple[int, ...]

    def holds(self, kept: Int[np.ndarray, "B stages"], prefix: int) -> bool:
        """Whether a batch whose images keep these numbers of patches fits."""
        rows = (prefix + kept).sum(axis=0)
        return len(kept) <= self.images and bool((rows <= self.rows).all())


def budgets(arch: Architecture, stages: Stages) -> list[Budget]:
    """The budgets, largest first: for each number of images, the rows that they have at each of `LEVELS`."""
    tokens = arch.patches + arch.prefix_tokens
    found = []
    for images in IMAGES:
        for level in LEVELS:
            counts = stages.keep_counts(arch.patches, level)
            # There is always room for one unpruned image.
            least = tokens + (images - 1) * (arch.prefix_tokens + 1)
            rows = tuple(max(least, images * (arch.prefix_tokens + count)) for count in counts)
            found.append(Budget(images, rows))
    return sorted(dict.fromkeys(found), key=lambda one: (one.images, one.rows), reverse=True)


def kept_of(ratios: Sequence[float], arch: Architecture, stages: Stages) -> Int[np.ndarray, "B stages"]:
    """The number of patches that images with these ratios keep at each stage."""
    counts = [stages.keep_counts(arch.patches, ratio) for ratio in ratios]
    return np.array(counts, np.int64).reshape(len(ratios), len(stages.blocks))


@lru_cache(maxsize=16)
def plan_within(budget: Budget, ratios: tuple[float, ...], arch: Architecture, stages: Stages) -> Plan:
    """The plan of a batch with the reducer `drop`, padded to ``budget``, which must hold it.

    The images keep their order. The result is cached, so its arrays must not be changed.
    """
    kept = kept_of(ratios, arch, stages)
    assert budget.holds(kept, arch.prefix_tokens)
    builder = _Builder(budget, arch, stages.rows)
    tokens = arch.patches + arch.prefix_tokens
    lengths = np.full(budget.images, tokens)
    planned = []
    for stage, rows in enumerate(budget.rows):
        after = np.zeros_like(lengths)
        after[: len(ratios)] = arch.prefix_tokens + kept[:, stage]
        planned.append(builder.stage(lengths, after, rows, first=stage == 0))
        lengths = after
    prefix_rows = _starts(lengths)[:, None] + np.arange(arch.prefix_tokens)
    at_end = builder.add(np.where(lengths[:, None] > 0, prefix_rows, 0).reshape(-1))
    return Plan(tuple(planned), End((), at_end), tuple(builder.tables))


class _Builder:
    """Builds the stages of a plan. Arrays of lengths are [images]; a length of 0 is a missing image."""

    def __init__(self, budget: Budget, arch: Architecture, rows: Rows) -> None:
        self._images, self._prefix, self._patches = budget.images, arch.prefix_tokens, arch.patches
        self._width = arch.patches + arch.prefix_tokens
        self._rows = rows
        self._before = Packing((self._width,) * self._images)
        self.tables: list[np.ndarray] = []
        self._bounds_before = self._bounds(np.full(self._images, self._width))

    def add(self, array: np.ndarray) -> Table:
        self.tables.append(np.ascontiguousarray(array))
        return Table(len(self.tables) - 1)

    def stage(self, before: np.ndarray, after: np.ndarray, rows: int, *, first: bool) -> StagePlan:
        # Represents every batch of the budget: the lengths differ, and the longest is an unpruned image.
        packing = Packing((self._width, *(self._prefix + 1,) * (self._images - 1)), rows)
        bounds = self._bounds(after)
        starts, own_before, bounds_before = _starts(before), self._before, self._bounds_before
        self._before, self._bounds_before = packing, bounds
        return StagePlan(
            before=own_before,
            patches=(self._patches,) * self._images,
            selected=packing,
            selected_patches=(1,) * self._images,
            after=packing,
            counts=(1,) * self._images,
            reducers=(_REDUCER,) * self._images,
            groups=(self._group(before, first=first),),
            selection=self._selection(before, after, rows),
            reduces=False,
            reduction=None,
            first_rows=None if first else self.add(starts),
            bounds_before=bounds_before,
            bounds_selected=bounds,
            bounds_after=bounds,
        )

    def _bounds(self, lengths: np.ndarray) -> Table:
        return self.add(np.concatenate(([0], lengths.cumsum())).astype(np.int32))

    def _group(self, lengths: np.ndarray, *, first: bool) -> Group:
        """All images side by side, each padded to the length of an unpruned image."""
        run = Run(0, self._images, 0, self._width)
        if first:
            return Group(run, self._patches)
        starts, place = _starts(lengths)[:, None], np.arange(self._width)
        there = place < lengths[:, None]
        # Missing images have one place that is not a gap: a softmax over gaps alone is NaN.
        gaps = place >= np.maximum(lengths, 1)[:, None]
        shares = (there / np.maximum(lengths, 1)[:, None]).astype(np.float32)
        return Group(
            run,
            self._patches,
            self.add(np.where(there, starts + place, starts).reshape(-1)),
            self.add(gaps),
            self.add(shares) if self._rows == "all" else None,
        )

    def _selection(self, before: np.ndarray, after: np.ndarray, rows: int) -> Selection:
        place, own, kept = np.arange(self._width), before[:, None], after[:, None]
        there = place < own
        entries = np.flatnonzero(place < kept)
        return Selection(
            self._width,
            self._width,
            self.add(there & (place >= self._prefix)),
            self.add(np.where(there, np.float32(np.inf), np.float32(-1))),
            self.add(place >= kept),
            self.add(np.pad(entries, (0, rows - len(entries)))),
            self.add(_starts(before)[:, None]),
        )


def _starts(lengths: np.ndarray) -> Int[np.ndarray, " images"]:
    """The first row of each image; row 0 for missing images."""
    starts = np.concatenate(([0], lengths[:-1].cumsum()))
    return np.where(lengths > 0, starts, 0)
