"""Makes plans on the host, in numpy: pure functions of the prunings of a batch."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Int

from models.plan import Asked, End, Group, Plan, Reduction, Round, Selection, StagePlan, Table
from models.ragged import Packing, Run, rounded, runs_of
from models.schedule import Pruning, keep_counts

# The size of the cache of plans. A plan for 64 images with 64 different ratios on a GPU takes 3 MiB.
MOST_REMEMBERED = 16


def order_of(prunings: Sequence[Pruning]) -> list[int]:
    """Sort the images so that those of the same length are neighbours at every stage."""
    return sorted(range(len(prunings)), key=lambda image: _place(prunings[image]))


def _place(pruning: Pruning) -> tuple[bool, str, float, float, str]:
    mass = pruning.keep_mass
    return (mass is not None, pruning.reducer, -pruning.keep_ratio, -(mass or 0.0), pruning.criterion)


@lru_cache(maxsize=MOST_REMEMBERED)
def plan_of(asked: Asked) -> Plan:
    """The plan of a batch with at least one stage. It is cached, so its arrays must not be changed."""
    tables = _Tables()
    counts = np.array(
        [keep_counts(asked.patches, ratio, asked.stages, asked.evenly) for ratio in asked.ratios], np.int64
    ).reshape(len(asked.ratios), asked.stages)
    patches = np.full(len(counts), asked.patches)
    fused = np.zeros_like(patches)
    ragged = len(set(asked.reducers)) > 1 or not _alike(*counts.T)
    stages = []
    for stage in range(asked.stages):
        builder = _Stage(asked, tables, patches, fused, counts[:, stage], ragged)
        stages.append(builder.plan())
        patches, fused = builder.counts, builder.fused_after
    return Plan(tuple(stages), builder.end(), tuple(tables.arrays))


class _Tables:
    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self._bounds: dict[bytes, Table] = {}

    def add(self, array: np.ndarray) -> Table:
        self.arrays.append(np.ascontiguousarray(array))
        return Table(len(self.arrays) - 1)

    def bounds(self, lengths: np.ndarray) -> Table:
        """The table of the bounds of images of these lengths. Equal lengths share a table."""
        key = lengths.tobytes()
        if key not in self._bounds:
            self._bounds[key] = self.add(np.concatenate(([0], lengths.cumsum())).astype(np.int32))
        return self._bounds[key]


class _Stage:
    """Builds one stage of a plan. Arrays are [B]."""

    def __init__(
        self,
        asked: Asked,
        tables: _Tables,
        patches: np.ndarray,
        fused: np.ndarray,
        counts: np.ndarray,
        ragged: bool,
    ) -> None:
        reducers = np.array(asked.reducers)
        lost = counts < patches
        self.asked, self.tables, self.ragged = asked, tables, ragged
        self.patches, self.fused, self.counts = patches, fused, counts
        self.reduced = [lost & (reducers == one) for one in ("fuse", "merge", "pool", "transform")]
        self.fuses = self.reduced[0]
        self.fused_after = fused + self.fuses
        self.before = asked.prefix + patches + fused
        self.selected_patches = np.where(reducers == "drop", counts, patches)
        self.selected = asked.prefix + self.selected_patches + fused
        self.after = asked.prefix + counts + self.fused_after

    def plan(self) -> StagePlan:
        before, selected, after = (
            Packing(tuple(lengths.tolist()), self._rows(lengths))
            for lengths in (self.before, self.selected, self.after)
        )
        ragged_before = not _alike(self.before)
        # Reduce run by run if images are alike, or if those of one reducer are not neighbours, which can
        # happen with `keep_mass`.
        in_one = (
            self.asked.in_one
            and not _alike(self.before, self.patches, self.after, *self.reduced)
            and all(map(_neighbours, self.reduced))
        )
        reduces = any(map(np.any, self.reduced))
        return StagePlan(
            before=before,
            patches=tuple(self.patches.tolist()),
            selected=selected,
            selected_patches=tuple(self.selected_patches.tolist()),
            after=after,
            counts=tuple(self.counts.tolist()),
            reducers=self.asked.reducers,
            groups=tuple(self._deciding(before)),
            selection=None if (self.selected == self.before).all() else self._dropping(),
            reduces=reduces,
            reduction=self._reduction() if reduces and in_one else None,
            first_rows=self.tables.add(_starts(self.before)) if ragged_before else None,
            bounds_before=self._bounds(self.before),
            bounds_selected=self._bounds(self.selected),
            bounds_after=self._bounds(self.after),
        )

    def end(self) -> End:
        """The end of the plan, if this is the last stage."""
        if not self.asked.pools_patches and not _alike(self.after):
            prefix_rows = _starts(self.after)[:, None] + np.arange(self.asked.prefix)
            return End((), self.tables.add(prefix_rows.reshape(-1)))
        if self.asked.in_one:
            return End((self._group(self.after, 0, len(self.after)),))
        lengths = self.after.tolist()
        return End(tuple(Group(run, int(self.counts[run.first_image])) for run in runs_of(lengths, lengths)))

    def _rows(self, lengths: np.ndarray) -> int:
        """`Packing.rows` for images of these lengths. With ``in_one``, batches of equal images stay dense."""
        if not self.asked.rounding or (self.asked.in_one and not self.ragged):
            return 0
        return rounded(int(lengths.sum()), self.asked.rounding)

    def _filled(self, index: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """With ``in_one``, pad an index of rows to the rows of the packing, by repeating row 0."""
        rows = self._rows(lengths) if self.asked.in_one else 0
        return np.pad(index, (0, max(0, rows - len(index))))

    def _bounds(self, lengths: np.ndarray) -> Table | None:
        return self.tables.bounds(lengths) if self.ragged else None

    def _deciding(self, before: Packing) -> Iterator[Group]:
        if self.asked.in_one:
            yield self._group(self.before, 0, len(self.before), shares=self.asked.rows == "all")
            return
        for run in runs_of(before.lengths, self.patches.tolist()):
            yield Group(run, int(self.patches[run.first_image]))

    def _group(self, lengths: np.ndarray, first: int, images: int, *, shares: bool = False) -> Group:
        """Neighbouring images as one table, with gaps if their lengths differ."""
        own, starts = lengths[first : first + images], _starts(lengths)[first : first + images]
        width = int(own.max())
        run = Run(first, images, int(starts[0]), width)
        patches = int(self.patches[first : first + images].max())
        if _alike(own):
            return Group(run, patches)
        there = np.arange(width) < own[:, None]
        return Group(
            run,
            patches,
            self.tables.add(np.where(there, starts[:, None] + np.arange(width), starts[:, None]).reshape(-1)),
            self.tables.add(~there),
            self.tables.add((there / own[:, None]).astype(np.float32)) if shares else None,
        )

    def _dropping(self) -> Selection:
        width = int(self.before.max())
        chosen_from = self._patch_places(width)
        if _alike(self.before, self.patches) and _alike(self.selected):
            return Selection(width, int(self.selected[0]))
        return self._selection(width, self.before, chosen_from, self.selected)

    def _patch_places(self, width: int) -> Bool[np.ndarray, "B width"]:
        place, prefix = np.arange(width), self.asked.prefix
        return (place >= prefix) & (place < prefix + self.patches[:, None])

    def _selection(
        self,
        width: int,
        lengths: Int[np.ndarray, " B"],
        chosen_from: Bool[np.ndarray, "B width"],
        kept: Int[np.ndarray, " B"],
        there: Bool[np.ndarray, "B width"] | None = None,
    ) -> Selection:
        """Select ``kept[b]`` tokens of each image. ``there``: the places with a token, if the tokens are in a
        table with gaps."""
        add = self.tables.add
        differ = there is not None or not _alike(lengths, self.patches)
        if there is None:
            there = np.arange(width) < lengths[:, None]
        most = int(kept.max())
        stays = np.arange(most) < kept[:, None]
        entries = self._filled(np.flatnonzero(stays), kept)
        return Selection(
            width,
            most,
            add(chosen_from) if differ else None,
            add(np.where(there, np.float32(np.inf), np.float32(-1))) if differ else None,
            None if stays.all() else add(~stays),
            None if stays.all() and len(entries) == stays.size else add(entries),
            add(_starts(lengths)[:, None]),
        )

    def _reduction(self) -> Reduction:
        asked, rows = self.asked, int(self.selected.sum())
        fusing, *others = (np.flatnonzero(some).tolist() for some in self.reduced)
        merging, pooling, transforming = others
        rounds = tuple(self._rounds(self.patches[merging], self.counts[merging]))
        most = [int(self.counts[some].max()) if some else 0 for some in others]
        merged, pooled, transformed = most
        width = int(self.before.max()) + 1  # plus one for a new fused token
        place, starts = np.arange(width), _starts(self.selected)[:, None]
        numbers = starts + place
        there = place < self.selected[:, None]
        numbers[fusing, -1] = rows + np.arange(len(fusing))
        there[fusing, -1] = True
        first, prefix = rows + len(fusing), asked.prefix
        for image, new in [(image, new) for some, new in zip(others, most, strict=True) for image in some]:
            count = int(self.counts[image])
            numbers[image, prefix : prefix + count] = first + np.arange(count)
            there[image] = place < self.after[image]
            first += new
        # Places without a token may hold any row that exists.
        numbers = np.where(there, numbers, starts)
        chosen_from = self._patch_places(width) & self.fuses[:, None]
        add = self.tables.add
        return Reduction(
            fusing=self._together(self.selected, fusing),
            merging=self._together(self.selected, merging),
            merging_before=self._together(self.before, merging),
            rounds=rounds,
            merged=merged,
            pooling=self._together(self.selected, pooling),
            pooled=pooled,
            pooled_counts=self._counts_of(pooling),
            transforming=self._together(self.selected, transforming),
            transforming_before=self._together(self.before, transforming),
            transformed=transformed,
            transformed_counts=self._counts_of(transforming),
            selection=self._selection(width, np.full(len(there), width), chosen_from, self.after, there),
            numbers=add(numbers.reshape(-1)) if len(fusing) else None,
            index=None if len(fusing) else add(self._filled(numbers[there], self.after)),
        )

    def _together(self, lengths: np.ndarray, images: list[int]) -> Group | None:
        return self._group(lengths, images[0], len(images)) if images else None

    def _counts_of(self, images: list[int]) -> Table | None:
        counts = self.counts[images]
        return None if not images or _alike(counts) else self.tables.add(counts[:, None])

    def _rounds(self, patches: np.ndarray, counts: np.ndarray) -> Iterator[Round]:
        add = self.tables.add
        while (patches > counts).any():
            pairs = np.minimum(patches - counts, patches // 2)
            width, left = int(patches.max()), patches - pairs
            if _alike(patches, pairs):
                yield Round(int(pairs[0]), int(left[0]))
            else:
                rank, place, own = np.arange(width // 2), np.arange(width), patches[:, None]
                made = rank < pairs[:, None]
                yield Round(
                    width // 2,
                    int(left.max()),
                    add((place[1::2] >= own)[:, :, None]),
                    add((place[::2] >= own)[:, None, :]),
                    add(~made),
                    add((made | (rank >= own // 2)).astype(np.int64)),
                    add((place >= own).astype(np.int64)),
                )
            patches = left


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], lengths[:-1].cumsum()))


def _alike(*columns: np.ndarray) -> bool:
    """Whether each column has the same value for all images."""
    return all((column == column[0]).all() for column in columns)


def _neighbours(some: Bool[np.ndarray, " B"]) -> bool:
    """Whether these images are neighbours, with no others between them."""
    places = np.flatnonzero(some)
    return len(places) == 0 or bool(places[-1] - places[0] == len(places) - 1)
