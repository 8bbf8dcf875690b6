"""Pooling: from the tokens after the last block to the input of the head."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from models.families import Family
from models.plan import End
from models.ragged import Tokens
from models.select import side_by_side


def pooled_of(
    family: Family, tokens: Tokens, end: End, tables: Sequence[Tensor]
) -> Float[Tensor, "B pooled"]:
    """The input of the head for each image, in the order of ``tokens``. ``tables``: the plan's tables on the
    device."""
    if end.prefix_rows is not None:
        images = len(tokens.patches)
        # All images in one call, whatever their lengths. (Images of one length keep timm's strides below, as
        # the last bits of the product depend on them for some widths.)
        rows = tokens.rows.flatten(0, -2).index_select(0, tables[end.prefix_rows])
        return family.pooled(family.norm(rows.unflatten(0, (images, -1))), None, None)
    normed = family.norm(tokens.rows)
    sizes = None if tokens.sizes is None else tokens.sizes.unsqueeze(1)
    pooled = []
    for group in end.groups:
        table = side_by_side(normed, group, tables)
        gaps = None if group.gaps is None else tables[group.gaps]
        own_sizes = None if sizes is None else side_by_side(sizes, group, tables).squeeze(2)
        pooled.append(family.pooled(table, gaps, own_sizes))
    return torch.cat(pooled) if len(pooled) > 1 else pooled[0]
