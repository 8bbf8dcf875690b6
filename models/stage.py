"""A stage: a block that prunes each image between its attention and its MLP."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models.attend import Parts, apart, heads, placed, width_of
from models.blocks import Blocks
from models.plan import Group, StagePlan
from models.ragged import Packing, Tokens
from models.reduction import KeysOf, reduce
from models.schedule import Rows
from models.select import (
    Criteria,
    decide,
    places_that_stay,
    rotation_beside,
    rows_that_stay,
    side_by_side,
)
from models.token_pool import pool_of


@dataclass(frozen=True, slots=True)
class Look:
    """What a stage decides by. It is computed before the number of patches to keep is known.

    ``normed``: the rows after ``norm1``. ``queries``: the queries of all rows; None if only the deciding ones
    were computed. ``source``: keys and values. ``rotation``: the rotary embedding of all rows. ``attention``,
    ``values``: attention weights and importance of all patches (see `decide`); the weights are None if
    nothing reads them.
    """

    normed: Tensor
    queries: Tensor | None
    source: Parts
    rotation: Tensor | None
    attention: Float[Tensor, "B H N"] | None
    values: Float[Tensor, "B N"]


@dataclass(frozen=True, slots=True)
class Stage:
    """Block ``index`` as a stage.

    ``rows``: the attention rows that decide. ``fuses``: whether any image uses `fuse`, which needs the
    attention weights, with gradients in training. ``prefix``: the number of prefix tokens, which are never
    pruned. ``tables``: the plan's tables on the device.
    """

    blocks: Blocks
    index: int
    criteria: Criteria
    rows: Rows
    fuses: bool
    prefix: int
    tables: Sequence[Tensor]

    def look(self, tokens: Tokens, groups: Sequence[Group], first_rows: Tensor | None) -> Look:
        """Compute what the stage decides by: keys and values, and the queries of ``rows``, or all queries if
        a criterion reads them, or none if nothing reads attention.

        ``first_rows``: the flat index of each image's first row, if lengths differ.
        """
        blocks, index = self.blocks, self.index
        attn, normed = blocks.attn(index), blocks.normed(index, tokens)
        learned = torch.is_grad_enabled() and self.fuses
        queries: Tensor | None = None
        deciding: Tensor | None = None
        if not (self.fuses or self.criteria.read_attention):
            source = blocks.project(index, normed, "kv")
        elif self.rows == "all" or self.criteria.of_the_matrix:
            first, *others = blocks.project(index, normed, "qkv")
            queries = deciding = first[..., : width_of(attn)]
            source = tuple(others) or (first[..., width_of(attn) :],)
        else:
            source = blocks.project(index, normed, "kv")
            with torch.set_grad_enabled(learned):
                first = _first_of_each(normed, tokens.packing, first_rows)
                (deciding,) = blocks.project(index, first, "q")
        rotation = tokens.rotation(index)
        with torch.set_grad_enabled(learned):
            attention, values = decide(
                attn,
                deciding,
                source,
                rotation,
                tokens,
                groups,
                self.criteria,
                self.rows,
                self.prefix,
                self.tables,
            )
        return Look(normed, queries, source, rotation, attention, values)

    def prune(self, tokens: Tokens, seen: Look, plan: StagePlan) -> Tokens:
        """Compute the rest of the block, from the result of `look`, and prune the tokens.

        Queries and outputs of dropped patches are not computed, which does not affect the other tokens.
        Patches are fused, merged, pooled or transformed after attention.
        """
        blocks, index, tables = self.blocks, self.index, self.tables
        normed, queries, selected = seen.normed, seen.queries, tokens
        if plan.selection is not None:
            places = places_that_stay(seen.values, plan.selection, self.prefix, tables)
            numbers = rows_that_stay(places, plan.selection, tables)
            selected = tokens.selected(numbers, plan.selected, plan.selected_patches)
            normed = tokens.packing.select(normed, numbers, plan.selected)
            if queries is not None:
                queries = tokens.packing.select(queries, numbers, plan.selected)
        selected = selected.bounded(None if plan.bounds_selected is None else tables[plan.bounds_selected])
        if queries is None:
            (queries,) = blocks.project(index, normed, "q")
        attended = blocks.attended(index, selected, normed, (queries, *seen.source), tokens)
        if plan.reduces:
            pool = pool_of(blocks.modules[index])
            attended = reduce(
                attended, self._keys(seen), pool, seen.attention, seen.values, plan, self.prefix, tables
            )
        return blocks.mlp(index, attended)

    def _keys(self, seen: Look) -> KeysOf:
        """The metric of `merge` and `transform`: the mean of the keys over heads, as in ToMe."""
        attn = self.blocks.attn(self.index)
        keys, _ = apart(attn, seen.source)

        def keys_of(group: Group) -> Tensor:
            (of_heads,) = heads(attn, side_by_side(keys, group, self.tables))
            rotation = rotation_beside(seen.rotation, group, self.tables)
            return placed(attn, attn.k_norm, of_heads, rotation).mean(dim=1)

        return keys_of


def _first_of_each(rows: Tensor, packing: Packing, first_rows: Tensor | None) -> Tensor:
    """The first row (CLS) of each image [B, D]."""
    if first_rows is None:
        return packing.runs[0].dense(rows)[:, 0]
    return rows.index_select(0, first_rows)
