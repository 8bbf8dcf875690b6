"""The plan of a batch: all lengths, orders and indices of its forward pass, which follow from its prunings.

The plan is known before anything is computed (planning.py). The device needs its tables, which are copied
there together (`ragged.all_on_device`). A batch whose images are all pruned in the same way needs none.

Lengths, bounds and counts are for the images in the order of `planning.order_of`.
"""

from dataclasses import dataclass
from typing import NewType

import numpy as np

from models.ragged import Packing, Run
from models.schedule import Reducer, Rows

# The index of a table in `Plan.tables`, and in the list of their copies on the device.
Table = NewType("Table", int)


@dataclass(frozen=True, slots=True)
class Asked:
    """The input of a plan, and its key in the cache of plans.

    ``ratios`` and ``reducers``: one per image. ``patches``, ``prefix``: the number of patches and of prefix
    tokens of an image before the first stage. ``stages``: the number of stages. ``rows``: the attention rows
    that decide. ``pools_patches``: whether the head reads patches. ``rounding``: the number of steps per
    power of two to which the rows of packings are rounded up (see `ragged.rounded`); 0: no rounding.
    ``in_one``: compute images of different lengths side by side in one table with gaps, so that the number of
    operations does not grow with the number of lengths; otherwise run by run. ``evenly``: see
    `schedule.Stages`.
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
    """Neighbouring images side by side in a table [images, tokens, ...], padded to the longest.

    ``run``: the position of the images; ``run.tokens`` is the width of the table. ``patches``: the number of
    columns after the prefix tokens that hold patches of any image.

    The tables are None if all images have the same length. ``rows`` [images * tokens]: the row of the batch
    for each place; in a gap, the image's first row. ``gaps`` [images, tokens]: True where the image has no
    token. ``shares`` [images, tokens]: 1 / length of the image, 0 in gaps.
    """

    run: Run
    patches: int
    rows: Table | None = None
    gaps: Table | None = None
    shares: Table | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Selects the tokens of each image to keep, by their values [B, width].

    ``width``: the maximum number of tokens of an image. ``most``: the maximum number that an image keeps. The
    tables are only needed if images differ:

    - ``chosen_from`` [B, width]: True for patches, which are selected by their values.
    - ``others`` [B, width]: the values of all other places, inf for tokens that are always kept and -1 for
      places without a token.
    - ``beyond`` [B, most]: True for places after the last token that an image keeps.
    - ``entries``: the flat indices of all other places of [B, most], padded with 0 (the first image's first
      row) for the rows after the images.
    - ``starts`` [B, 1]: the flat index of each image's first row.
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
    """A round of merging (see `reducers.merge`). ``pairs``: the maximum number of pairs of an image.
    ``left``: the maximum number of patches left. The tables are only needed if images differ:

    - ``missing_odd`` [B, odd, 1], ``missing_even`` [B, 1, even]: True for such places without a patch.
    - ``unmatched``, ``gone`` [B, odd]: for the odd places in descending order of similarity, True if the
      patch is not merged, and 1 if the patch is merged away or does not exist.
    - ``missing`` [B, N]: 1 for places without a patch.
    """

    pairs: int
    left: int
    missing_odd: Table | None = None
    missing_even: Table | None = None
    unmatched: Table | None = None
    gone: Table | None = None
    missing: Table | None = None


@dataclass(frozen=True, slots=True)
class Reduction:
    """Fusing, merging, pooling and transforming in a batch whose images differ, for all images at once.

    The remaining rows are gathered from a concatenation of the selected rows, one fused token per image of
    ``fusing``, ``merged`` patches for each image of ``merging``, ``pooled`` tokens for each image of
    ``pooling`` and ``transformed`` tokens for each image of ``transforming``. ``numbers`` [B * width] holds
    the row number for each image and place. If nothing is fused, ``index`` holds the row numbers of the
    remaining rows in their order instead.

    ``pooled_counts``, ``transformed_counts`` [images, 1]: the number of tokens of each image, if they differ.
    ``*_before``: the same images before the stage.
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
    """The plan of a stage.

    The packings, each with the number of patches of each image: ``before`` the stage (``patches``),
    ``selected``, after dropping patches (``selected_patches``), and ``after``, when patches have also been
    fused, merged, pooled or transformed (``counts``).

    ``groups``: the images for which the deciding attention is computed together. ``first_rows`` [B]: each
    image's first row. ``reduction``: None if no patches are fused, merged, pooled or transformed, or if that
    is done run by run. ``bounds_*`` [B + 1]: the first row of each image, then the total number of rows
    (int32).
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
    """The plan of the head. ``groups``: the images that are pooled together. If images differ in length and
    the head only reads prefix tokens, ``prefix_rows`` [B * prefix] holds their row numbers instead."""

    groups: tuple[Group, ...]
    prefix_rows: Table | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The stages, the end, and the tables that these refer to."""

    stages: tuple[StagePlan, ...]
    end: End
    tables: tuple[np.ndarray, ...]
