"""Fusing, merging, pooling and transforming in a batch: run by run, or all images in one (plan.py says
which)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from models.criteria import most_important
from models.plan import Group, Reduction, Round, StagePlan, Table
from models.ragged import Run, Tokens, runs_of
from models.reducers import RoundTables, fuse, fuse_dropped, merge, transform
from models.schedule import Reducer
from models.select import places_that_stay, rows_that_stay, side_by_side
from models.token_pool import TokenPool

# The keys [images, tokens, K] of a group's images as they came to the stage, which `merge` and `transform`
# compare.
KeysOf = Callable[[Group], Tensor]
# Reducers after which attention is biased by sizes.
_SIZED: frozenset[Reducer] = frozenset(("merge", "pool", "transform"))


def reduce(
    tokens: Tokens,
    keys: KeysOf,
    pool: TokenPool | None,
    attention: Float[Tensor, "B H N"] | None,
    values: Float[Tensor, "B N"],
    stage: StagePlan,
    prefix: int,
    tables: Sequence[Tensor],
) -> Tokens:
    """Fuse, merge, pool or transform what is left after the stage's attention, until its ``counts`` are.
    ``pool``: the block's, if it has one. ``attention`` (None if no image fuses) and ``values`` are of the
    patches before the stage, of which images that do not drop have lost none."""
    sizes = tokens.sizes
    if sizes is None:
        sizes = torch.ones(sum(tokens.packing.lengths), device=tokens.rows.device)
    weights = values if attention is None else attention.mean(dim=1)  # read by `fuse` only
    if stage.reduction is None:
        rows, ids, sizes = _by_runs(tokens, sizes, keys, pool, weights, values, stage, prefix)
    else:
        rows, ids, sizes = _in_one(
            tokens, sizes, keys, pool, weights, values, stage, stage.reduction, prefix, tables
        )
    bias = None
    if tokens.bias is not None or not _SIZED.isdisjoint(stage.reducers):
        # ToMe's proportional attention: a token of s patches is attended to s times. EViT's fused one is not.
        counted = sizes.masked_fill(ids < 0, 1) if "fuse" in stage.reducers else sizes
        bias = counted.log().to(rows.dtype)
    bounds = None if stage.bounds_after is None else tables[stage.bounds_after]
    return Tokens(rows, stage.after, stage.counts, ids, sizes, bias, bounds, tokens.rotations)


def _by_runs(
    tokens: Tokens,
    sizes: Tensor,
    keys: KeysOf,
    pool: TokenPool | None,
    weights: Float[Tensor, "B N"],
    values: Float[Tensor, "B N"],
    stage: StagePlan,
    prefix: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, ids and sizes that are left. ``weights``: the attention that patches get, of all heads on
    average."""
    rows: list[Tensor] = []
    ids: list[Tensor] = []
    new_sizes: list[Tensor] = []
    alike = zip(stage.selected_patches, stage.counts, stage.reducers, strict=True)
    for run in runs_of(tokens.packing.lengths, list(alike)):
        first = run.first_image
        patches, count = stage.selected_patches[first], stage.counts[first]
        own, middle = slice(first, first + run.images), slice(prefix, prefix + patches)
        before, own_rows, after = run.dense(tokens.rows).tensor_split((prefix, middle.stop), dim=1)
        own_sizes = run.dense(sizes.unsqueeze(1)).squeeze(2)
        own_ids = run.dense(tokens.ids.unsqueeze(1)).squeeze(2)[:, middle]
        sizes_before, left_sizes, sizes_after = own_sizes.tensor_split((prefix, middle.stop), dim=1)
        if count < patches and stage.reducers[first] in ("merge", "transform"):
            before_run = Run(first, run.images, stage.before.starts[first], run.tokens)
            compared = keys(Group(before_run, patches))[:, middle]
            if stage.reducers[first] == "merge":
                own_rows, left_sizes, places = merge(own_rows, compared, left_sizes, count)
            else:
                places = most_important(values[own, :patches], count)
                own_rows, left_sizes = transform(own_rows, compared, left_sizes, places)
            own_ids = own_ids.gather(1, places)
        elif count < patches and stage.reducers[first] == "pool":
            assert pool is not None
            own_rows, left_sizes, own_ids = pool(own_rows, left_sizes, own_ids, count)
        elif count < patches:
            places = most_important(values[own, :patches], count)
            fused = fuse(own_rows, weights[own, :patches], places)
            own_rows = torch.take_along_dim(own_rows, places.unsqueeze(2), dim=1)
            left_sizes = left_sizes[:, :count]
            after = torch.cat((after, fused), dim=1)
            sizes_after = F.pad(sizes_after, (0, 1), value=patches - count)
            own_ids = own_ids.gather(1, places)
        rows.append(torch.cat((before, own_rows, after), dim=1))
        # What is no patch has no place.
        ids.append(F.pad(own_ids, (prefix, after.shape[1]), value=-1).flatten())
        new_sizes.append(torch.cat((sizes_before, left_sizes, sizes_after), dim=1).flatten())
    return stage.after.pack(rows), torch.cat(ids), torch.cat(new_sizes)


def _in_one(
    tokens: Tokens,
    sizes: Tensor,
    keys: KeysOf,
    pool: TokenPool | None,
    weights: Float[Tensor, "B N"],
    values: Float[Tensor, "B N"],
    stage: StagePlan,
    plan: Reduction,
    prefix: int,
    tables: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_by_runs`. New tokens are put behind all others, and then what is left is gathered."""
    count = sum(tokens.packing.lengths)
    # New tokens are numbered from the end of the images on.
    rows, ids, new_sizes = [tokens.rows.flatten(0, -2)[:count]], [tokens.ids[:count]], [sizes[:count]]
    if plan.fusing is None:
        assert plan.index is not None
        index = tables[plan.index]
    else:
        selection = plan.selection
        assert plan.numbers is not None
        assert selection.chosen_from is not None
        places = places_that_stay(values, selection, prefix, tables)
        index = tables[plan.numbers].index_select(0, rows_that_stay(places, selection, tables))
        run = plan.fusing.run
        own = slice(run.first_image, run.first_image + run.images)
        dropped = tables[selection.chosen_from][own].scatter(1, places[own], value=False)
        patches = slice(prefix, prefix + plan.fusing.patches)
        fused = fuse_dropped(
            side_by_side(rows[0], plan.fusing, tables)[:, patches],
            weights[own, : plan.fusing.patches],
            dropped[:, patches],
        )
        rows.append(fused.flatten(0, 1))
        ids.append(tokens.ids.new_full((run.images,), -1))
        new_sizes.append(dropped.sum(dim=1, dtype=sizes.dtype))
    if plan.merging is not None and plan.merging_before is not None:
        own_rows = side_by_side(rows[0], plan.merging, tables)[:, prefix:]
        compared = keys(plan.merging_before)[:, prefix:]
        own_sizes = side_by_side(sizes.unsqueeze(1), plan.merging, tables)[:, prefix:, 0]
        own_ids = side_by_side(tokens.ids.unsqueeze(1), plan.merging, tables)[:, prefix:, 0]
        rounds = [_on_device(one, tables) for one in plan.rounds]
        merged, merged_sizes, places = merge(own_rows, compared, own_sizes, plan.merged, rounds)
        rows.append(merged.flatten(0, 1))
        ids.append(own_ids.gather(1, places).flatten())
        new_sizes.append(merged_sizes.flatten())
    if plan.pooling is not None:
        assert pool is not None
        group = plan.pooling
        pooled, pooled_sizes, places = pool(
            side_by_side(rows[0], group, tables)[:, prefix:],
            side_by_side(sizes.unsqueeze(1), group, tables)[:, prefix:, 0],
            side_by_side(tokens.ids.unsqueeze(1), group, tables)[:, prefix:, 0],
            plan.pooled,
            None if plan.pooled_counts is None else tables[plan.pooled_counts],
            None if group.gaps is None else tables[group.gaps][:, prefix:],
        )
        rows.append(pooled.flatten(0, 1))
        ids.append(places.flatten())
        new_sizes.append(pooled_sizes.flatten())
    if plan.transforming is not None and plan.transforming_before is not None:
        group = plan.transforming
        run = group.run
        gaps = None if group.gaps is None else tables[group.gaps][:, prefix:]
        own_values = values[run.first_image : run.first_image + run.images, : group.patches]
        beyond = None
        if gaps is not None:
            own_values = own_values.masked_fill(gaps, -1)  # importance is not negative
        if plan.transformed_counts is not None:
            beyond = torch.arange(plan.transformed, device=values.device) >= tables[plan.transformed_counts]
        places = most_important(own_values, plan.transformed, beyond)
        own_rows, own_sizes = transform(
            side_by_side(rows[0], group, tables)[:, prefix:],
            keys(plan.transforming_before)[:, prefix:],
            side_by_side(sizes.unsqueeze(1), group, tables)[:, prefix:, 0],
            places,
            beyond,
            gaps,
        )
        own_ids = side_by_side(tokens.ids.unsqueeze(1), group, tables)[:, prefix:, 0]
        rows.append(own_rows.flatten(0, 1))
        ids.append(own_ids.gather(1, places).flatten())
        new_sizes.append(own_sizes.flatten())
    whole = torch.cat(rows)
    return (
        stage.selected.select(whole, index, stage.after),
        torch.cat(ids).index_select(0, index),
        torch.cat(new_sizes).index_select(0, index),
    )


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
