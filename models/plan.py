"""Everything that follows from the prunings of a batch: every length, order and index of its forward pass.

All of it is known before anything is computed (planning.py). The device needs tables, which are copied there
together (`ragged.all_on_device`). A batch whose images are all pruned in the same way needs none.

Lengths, bounds and counts are for the images in the order of `planning.order_of`.
"""

from dataclasses import dataclass
from typing import NewType

import numpy as np

from models.ragged import Packing, Run
from models.schedule import Reducer, Rows

# The place of a table among `Plan.tables`, and so among their copies on the device.
Table = NewType("Table", int)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a plan depends on: the key of the cache of plans.

    ``ratios`` and ``reducers``: one for each image. ``patches``, ``prefix``: tokens of an image before the
    first of ``stages`` stages. ``rows``: the attention rows that decide. ``pools_patches``: whether the head
    reads more than prefix tokens. ``rounding``: the number of parts of a power of two to which the rows of
    packings are rounded up (see `ragged.rounded`); 0: no rounding. ``in_one``: images of different lengths
    are computed side by side in one table with gaps, so that the number of operations does not grow with the
    number of lengths; otherwise run by run. ``evenly``: see `schedule.Stages`.
    """

    ratios: tuple[float, ...]
    reducers: tuple[Reducer, ...]
    patches: int
    prefix: int
    stages: int
    rows: Rows
    pools_patches: bool
    rounding: int
    in_one: bool
    evenly: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring images side by side: [images, tokens, ...].

    ``run``: where they are; its ``tokens`` are those of the longest one, of which ``patches`` behind the
    prefix tokens are patches, at least in one of the images. Where their lengths differ,
    ``rows`` [images * tokens] numbers the rows that are to be put there (in a gap the image's first one),
    ``gaps`` [images, tokens] says if nothing is, and ``shares`` [images, tokens] holds one divided by the
    image's length, 0 in gaps.
    """

    run: Run
    patches: int
    rows: Table | None = None
    gaps: Table | None = None
    shares: Table | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which tokens of each image stay, by the values [B, width] that they have, ``width`` being the most that
    an image has.

    ``most`` tokens of an image stay at most. Where images differ: ``chosen_from`` [B, width] are patches,
    among which values decide; other places have the value ``others`` [B, width] (infinite where a token
    always stays, -1 if there is none). ``beyond`` [B, most] are places that an image has no tokens for,
    ``entries`` numbers the others, and ``starts`` [B, 1] is the flat number of each image's
    first row. ``entries`` go on for the rows behind the images, which are the first image's first row again.
    """

    width: int
    most: int
    chosen_from: Table | None = None
    others: Table | None = None
    beyond: Table | None = None
    entries: Table | None = None
    starts: Table | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """A round of merging (see `reducers.merge`): at most ``pairs`` pairs of an image, and at most ``left``
    patches that are left of it. Where images differ: ``missing_odd`` [B, odd, 1] and ``missing_even``
    [B, 1, even] are places without a patch; of the odd ones ordered by likeness, ``unmatched`` [B, odd] stay
    and ``gone`` [B, odd] do not, or were never there; ``missing`` [B, N] is 1 if no patch is."""

    pairs: int
    left: int
    missing_odd: Table | None = None
    missing_even: Table | None = None
    unmatched: Table | None = None
    gone: Table | None = None
    missing: Table | None = None


@dataclass(frozen=True, slots=True)
class Reduction:
    """Fusing, merging, pooling and transforming of a batch whose images differ, all in one.

    The rows that are left are named by number among the rows there were, then one fused token for each image
    of ``fusing``, then ``merged`` patches for each image of ``merging``, then ``pooled`` tokens for each
    image of ``pooling``, then ``transformed`` ones for each of ``transforming``. ``numbers`` [B * width]
    names them by image and place; if nothing is fused, ``index`` does so in the order in which they are
    left.
    ``pooled_counts``, ``transformed_counts`` [B, 1]: where images keep different numbers of tokens.
    ``*_before``: the same images as they come to the stage.
    """

    fusing: Group | None
    merging: Group | None
    merging_before: Group | None
    rounds: tuple[Round, ...]
    merged: int
    pooling: Group | None
    pooled: int
    pooled_counts: Table | None
    transforming: Group | None
    transforming_before: Group | None
    transformed: int
    transformed_counts: Table | None
    selection: Selection
    numbers: Table | None
    index: Table | None


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A stage. ``before``: as images come, with ``patches``; ``selected``: without what is dropped, with
    ``selected_patches``; ``after``: also without what is fused, merged, pooled or transformed, with
    ``counts`` patches.

    ``groups``: the images as the attention that decides is computed. ``first_rows`` [B]: each image's first
    row. ``reduction`` is None if nothing is fused, merged, pooled or transformed, or all images are, alike
    or run by run.
    ``bounds_*`` [B + 1]: the first row of each image and the number of all, int32.
    """

    before: Packing
    patches: tuple[int, ...]
    selected: Packing
    selected_patches: tuple[int, ...]
    after: Packing
    counts: tuple[int, ...]
    reducers: tuple[Reducer, ...]
    groups: tuple[Group, ...]
    selection: Selection | None
    reduces: bool
    reduction: Reduction | None
    first_rows: Table | None
    bounds_before: Table | None
    bounds_selected: Table | None
    bounds_after: Table | None


@dataclass(frozen=True, slots=True)
class End:
    """What comes behind the last block. ``groups``: the images as the head reads them. If they differ in
    length and it reads prefix tokens only, ``prefix_rows`` [B * prefix] numbers the rows of these instead."""

    groups: tuple[Group, ...]
    prefix_rows: Table | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Stages and end, and the tables that they name."""

    stages: tuple[StagePlan, ...]
    end: End
    tables: tuple[np.ndarray, ...]
