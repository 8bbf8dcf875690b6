"""timm's transformer blocks over the tokens of a packed batch: plain ones, and a stage's, which prunes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from timm.models.vision_transformer import Block, LayerScale
from torch import Tensor, nn

from models.attention import (
    cross_attention,
    heads,
    keys_and_values,
    queries,
    self_attention,
    width_of,
)
from models.linear.mlp import mlp
from models.plan import Group, StagePlan
from models.ragged import Packing, Tokens
from models.reduction import reduce
from models.schedule import Rows
from models.select import Criteria, decide, places_that_stay, rows_that_stay, side_by_side


def plain_block(block: Block, tokens: Tokens, exact: bool) -> Tokens:
    """A block that prunes nothing; ``exact`` with timm's own kernels."""
    update = self_attention(block.attn, block.norm1(tokens.rows), tokens, exact)
    return _mlp(block, _add(tokens, update, block.ls1, block.drop_path1, exact), exact)


@dataclass(frozen=True, slots=True)
class Look:
    """What a stage's block decides by, computed before it is known how many patches stay.

    ``normed`` rows; ``queries`` of all of them, None where only those that decide were computed; ``source``:
    key and value rows; ``attention`` and ``values``: weights and importance of all patches (see `decide`).
    """

    normed: Tensor
    queries: Tensor | None
    source: Tensor
    attention: Float[Tensor, "B H N"]
    values: Float[Tensor, "B N"]


def look(
    block: Block,
    tokens: Tokens,
    groups: Sequence[Group],
    criteria: Criteria,
    rows: Rows,
    prefix: int,
    first_rows: Tensor | None,
    tables: Sequence[Tensor],
) -> Look:
    """What decides in this block: keys, and the query of ``rows``. ``first_rows``: the number of each image's
    first row, where they are of different lengths."""
    attn = block.attn
    normed = block.norm1(tokens.rows)
    if rows == "all":
        deciding, source = attn.qkv(normed).tensor_split((width_of(attn),), dim=-1)
        all_queries = deciding
    else:
        all_queries, source = None, keys_and_values(attn, normed)
        with torch.no_grad():
            deciding = queries(attn, _first_of_each(normed, tokens.packing, first_rows))
    attention, values = decide(attn, deciding, source, tokens, groups, criteria, rows, prefix, tables)
    return Look(normed, all_queries, source, attention, values)


def prune(
    block: Block, tokens: Tokens, seen: Look, stage: StagePlan, prefix: int, tables: Sequence[Tensor]
) -> Tokens:
    """The block that was looked at: each image is pruned between its attention and its MLP.

    For patches that are dropped neither queries nor outputs are computed: the rest is what it would be with
    them. Those that are fused or merged are so after their attention.
    """
    attn, packing = block.attn, stage.selected
    normed, q_rows, selected = seen.normed, seen.queries, tokens
    if stage.selection is not None:
        places = places_that_stay(seen.values, stage.selection, prefix, tables)
        index = rows_that_stay(places, stage.selection, tables)
        selected = Tokens(
            tokens.packing.select(tokens.rows, index, packing),
            packing,
            stage.selected_patches,
            tokens.ids.index_select(0, index),
            None if tokens.sizes is None else tokens.sizes.index_select(0, index),
        )
        normed = tokens.packing.select(normed, index, packing)
        q_rows = None if q_rows is None else tokens.packing.select(q_rows, index, packing)
    bounds = None if stage.bounds_selected is None else tables[stage.bounds_selected]
    selected = selected.bounded(bounds)
    if q_rows is None:
        q_rows = queries(attn, normed)
    update = cross_attention(attn, q_rows, normed, selected, seen.source, tokens)
    attended = _add(selected, update, block.ls1, block.drop_path1, exact=False)
    if stage.reduces:

        def keys(group: Group) -> Tensor:
            """Their mean over heads (ToMe's)."""
            (k,) = heads(attn, side_by_side(seen.source[..., : width_of(attn)], group, tables))
            return attn.k_norm(k).mean(dim=1)

        attended = reduce(attended, keys, seen.attention, seen.values, stage, prefix, tables)
    return _mlp(block, attended, exact=False)


def _mlp(block: Block, tokens: Tokens, exact: bool) -> Tokens:
    update = mlp(block.mlp, block.norm2(tokens.rows), exact)
    return _add(tokens, update, block.ls2, block.drop_path2, exact)


def _add(tokens: Tokens, update: Tensor, scale: nn.Module, drop_path: nn.Module, exact: bool) -> Tokens:
    """The tokens with their rows' update, scaled and, in training, now and then dropped."""
    if isinstance(scale, LayerScale) and not (exact or scale.training or torch.is_grad_enabled()):
        # One operation, which rounds once.
        return tokens.with_rows(torch.addcmul(tokens.rows, update, scale.gamma))
    return tokens.with_rows(tokens.rows + _drop_path(drop_path, scale(update), tokens.packing))


def _drop_path(drop_path: nn.Module, update: Tensor, packing: Packing) -> Tensor:
    return update if isinstance(drop_path, nn.Identity) else packing.map_runs(drop_path, update)


def _first_of_each(rows: Tensor, packing: Packing, first_rows: Tensor | None) -> Tensor:
    """The first row (CLS) of each image: [B, D]."""
    if first_rows is None:
        return packing.runs[0].dense(rows)[:, 0]
    return rows.index_select(0, first_rows)
