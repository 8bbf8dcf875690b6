"""Applies each reducer to all of its images at once, for a batch whose images differ.

New tokens are appended to the existing ones, and then the remaining tokens are gathered. The number of
operations does not depend on the number of different lengths.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.criteria import most_important
from models.plan import Group, Reduction, Round, Table
from models.reducers import RoundTables, fuse_dropped, merge, transform
from models.reduction.reducible import Reduced, Reducible
from models.select import places_that_stay, rows_that_stay, side_by_side


def reduced_in_one(batch: Reducible, plan: Reduction) -> Reduced:
    """Reduce the whole batch by the plan's `Reduction`. The tokens are in the order of the plan."""
    count = sum(batch.tokens.packing.lengths)
    # New tokens are numbered from the last row of the images on, so padding rows are removed first.
    parts = [Reduced(batch.tokens.rows.flatten(0, -2)[:count], batch.tokens.ids[:count], batch.sizes[:count])]
    if plan.fusing is None:
        assert plan.index is not None
        index = batch.tables[plan.index]
    else:
        places = places_that_stay(batch.values, plan.selection, batch.prefix, batch.tables)
        index = _index_beside_fused(batch, plan, places)
        parts.append(_fused(batch, plan, plan.fusing, places))
    if plan.merging is not None and plan.merging_before is not None:
        parts.append(_merged(batch, plan, plan.merging, plan.merging_before))
    if plan.pooling is not None:
        parts.append(_pooled(batch, plan, plan.pooling))
    if plan.transforming is not None and plan.transforming_before is not None:
        parts.append(_transformed(batch, plan, plan.transforming, plan.transforming_before))
    return Reduced(
        batch.stage.selected.select(torch.cat([part.rows for part in parts]), index, batch.stage.after),
        torch.cat([part.ids for part in parts]).index_select(0, index),
        torch.cat([part.sizes for part in parts]).index_select(0, index),
    )


def _index_beside_fused(batch: Reducible, plan: Reduction, places: Tensor) -> Tensor:
    """The row numbers of the remaining tokens. ``places``: the places that are kept in images that fuse."""
    assert plan.numbers is not None
    rows = rows_that_stay(places, plan.selection, batch.tables)
    return batch.tables[plan.numbers].index_select(0, rows)


def _fused(batch: Reducible, plan: Reduction, group: Group, places: Tensor) -> Reduced:
    """One fused token per image, of all patches except those at ``places``."""
    assert plan.selection.chosen_from is not None
    run = group.run
    own = run.of_images
    candidates = batch.tables[plan.selection.chosen_from][own]
    dropped = candidates.scatter(1, places[own], value=False)
    patches = slice(batch.prefix, batch.prefix + group.patches)
    fused = fuse_dropped(
        _rows(batch, group)[:, patches], batch.weights[own, : group.patches], dropped[:, patches]
    )
    return Reduced(
        fused.flatten(0, 1),
        batch.tokens.ids.new_full((run.images,), -1),
        dropped.sum(dim=1, dtype=batch.sizes.dtype),
    )


def _merged(batch: Reducible, plan: Reduction, group: Group, before: Group) -> Reduced:
    """The patches of each image after merging similar ones. ``before``: the images before the stage."""
    rows, ids, sizes = _patches(batch, group)
    compared = batch.keys(before)[:, batch.prefix :]
    rounds = [_on_device(one, batch.tables) for one in plan.rounds]
    merged, merged_sizes, places = merge(rows, compared, sizes, plan.merged, rounds)
    return Reduced(merged.flatten(0, 1), ids.gather(1, places).flatten(), merged_sizes.flatten())


def _pooled(batch: Reducible, plan: Reduction, group: Group) -> Reduced:
    """The tokens of each image, pooled by the block's learned queries."""
    assert batch.pool is not None
    rows, ids, sizes = _patches(batch, group)
    beyond = None if plan.pooled_counts is None else batch.tables[plan.pooled_counts]
    pooled, pooled_sizes, places = batch.pool(rows, sizes, ids, plan.pooled, beyond, _gaps(batch, group))
    return Reduced(pooled.flatten(0, 1), places.flatten(), pooled_sizes.flatten())


def _transformed(batch: Reducible, plan: Reduction, group: Group, before: Group) -> Reduced:
    """The most important patches of each image, with all other patches mixed into them. ``before``: the
    images before the stage."""
    run, gaps = group.run, _gaps(batch, group)
    values = batch.values[run.of_images, : group.patches]
    if gaps is not None:
        values = values.masked_fill(gaps, -1)  # importance is not negative
    beyond = None
    if plan.transformed_counts is not None:
        numbers = torch.arange(plan.transformed, device=values.device)
        beyond = numbers >= batch.tables[plan.transformed_counts]
    places = most_important(values, plan.transformed, beyond)
    rows, ids, sizes = _patches(batch, group)
    compared = batch.keys(before)[:, batch.prefix :]
    transformed, transformed_sizes = transform(rows, compared, sizes, places, beyond, gaps)
    return Reduced(transformed.flatten(0, 1), ids.gather(1, places).flatten(), transformed_sizes.flatten())


def _rows(batch: Reducible, group: Group) -> Tensor:
    """The rows of a group as a table [images, tokens, D]."""
    return side_by_side(batch.tokens.rows.flatten(0, -2), group, batch.tables)


def _patches(batch: Reducible, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """The patches of a group as tables: rows [images, patches, D], ids and sizes [images, patches]."""
    ids, sizes = (
        side_by_side(values.unsqueeze(1), group, batch.tables)[:, batch.prefix :, 0]
        for values in (batch.tokens.ids, batch.sizes)
    )
    return _rows(batch, group)[:, batch.prefix :], ids, sizes


def _gaps(batch: Reducible, group: Group) -> Tensor | None:
    """A mask [images, patches] that is True for places without a patch, for the images of a group."""
    return None if group.gaps is None else batch.tables[group.gaps][:, batch.prefix :]


def _on_device(one: Round, tables: Sequence[Tensor]) -> RoundTables:
    def table(place: Table | None) -> Tensor | None:
        return None if place is None else tables[place]

    return RoundTables(
        one.pairs,
        one.left,
        table(one.missing_odd),
        table(one.missing_even),
        table(one.unmatched),
        table(one.gone),
        table(one.missing),
    )
