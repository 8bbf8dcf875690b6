"""Selects the patches that each image keeps, by their importance.

Everything that depends on lengths comes from the plan (plan.py), so the number of operations only depends on
the plan's number of groups: one for each run of images of one length, or one for the whole batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from models.attend import Attention, Parts, apart, heads, placed
from models.criteria import (
    OF_THE_IMAGE,
    OF_THE_MATRIX,
    attention_rows,
    importance,
    matrix_importances,
    most_important,
    random,
)
from models.plan import Group, Selection
from models.ragged import Tokens
from models.schedule import Criterion, Pruning, Rows


@dataclass(frozen=True, slots=True)
class Criteria:
    """The criteria of the images of a batch.

    ``names``: the different criteria. ``chosen`` [B]: the index of each image's importance in the
    concatenation [names * B] of all images under each criterion; None with a single criterion. ``given``: the
    importance of all patches of the unpruned images under criteria of `OF_THE_IMAGE`, which is the same at
    all stages.
    """

    names: tuple[Criterion, ...]
    chosen: Int[Tensor, " B"] | None
    given: Mapping[Criterion, Float[Tensor, "B patches"]]

    @property
    def read_attention(self) -> bool:
        """Whether any of the criteria reads attention."""
        return not OF_THE_IMAGE.issuperset(self.names)

    @property
    def of_the_matrix(self) -> tuple[Criterion, ...]:
        """The criteria that read the attention of all queries."""
        return tuple(name for name in self.names if name in OF_THE_MATRIX)

    @staticmethod
    def arrays(prunings: Sequence[Pruning]) -> list[np.ndarray]:
        """The arrays that `of` needs on the device."""
        names = _names(prunings)
        chosen = [names.index(one.criterion) * len(prunings) + image for image, one in enumerate(prunings)]
        seeds = [one.seed for one in prunings]
        return [np.array(chosen)] * (len(names) > 1) + [np.array(seeds)] * ("random" in names)

    @staticmethod
    def of(
        prunings: Sequence[Pruning],
        tensors: Sequence[Tensor],
        patches: int,
        lives: Float[Tensor, "B patches"] | None,
    ) -> "Criteria":
        """Create the criteria of a batch.

        ``tensors``: the result of `arrays`, on the device. ``patches``: the number of patches before the
        first stage. ``lives``: the output of the life predictor, if an image is pruned by `life`.
        """
        names = _names(prunings)
        given: dict[Criterion, Tensor] = {} if lives is None else {"life": lives}
        if "random" in names:
            seeds = tensors[-1]
            places = torch.arange(patches, device=seeds.device).expand(len(seeds), -1)
            given["random"] = random(places, seeds)
        return Criteria(names, tensors[0] if len(names) > 1 else None, given)


def _names(prunings: Sequence[Pruning]) -> tuple[Criterion, ...]:
    return tuple(dict.fromkeys(pruning.criterion for pruning in prunings))


def side_by_side(
    rows: Shaped[Tensor, "*rows D"], group: Group, tables: Sequence[Tensor]
) -> Shaped[Tensor, "images tokens D"]:
    """The rows of a group's images as a table. A view if they all have the same length."""
    if group.rows is None:
        return group.run.dense(rows)
    numbered = rows.flatten(0, -2).index_select(0, tables[group.rows])
    return numbered.view(group.run.images, group.run.tokens, -1)


def rotation_beside(
    rotation: Float[Tensor, "rows heads sin_cos"] | None, group: Group, tables: Sequence[Tensor]
) -> Float[Tensor, "images heads tokens sin_cos"] | None:
    """The rotary embedding of the tokens of a group's images as a table (see `Tokens.rotation`)."""
    if rotation is None:
        return None
    return side_by_side(rotation.flatten(1), group, tables).unflatten(2, rotation.shape[1:]).transpose(1, 2)


def decide(
    attn: Attention,
    deciding: Tensor | None,
    source: Parts,
    rotation: Tensor | None,
    tokens: Tokens,
    groups: Sequence[Group],
    criteria: Criteria,
    rows: Rows,
    prefix: int,
    tables: Sequence[Tensor],
) -> tuple[Float[Tensor, "B H N"] | None, Float[Tensor, "B N"]]:
    """Compute the attention weights and the importance of all patches. N is the maximum number of patches of
    an image; values after an image's last patch are undefined.

    ``deciding``: the query rows of all tokens, or one per image (CLS) if ``rows`` is "cls" and no criterion
    reads the attention of all queries. None if nothing reads attention; no weights are computed then.
    ``source``: the keys and values of all tokens. ``rotation``: their rotary embedding.

    Attention is computed group by group, and the importance for the whole batch at once. Every operation
    treats images separately, so the result for an image does not depend on the batch.

    The importance has no gradient. The weights have one if gradients are enabled, because `fuse` uses them.
    """
    keys, values = apart(attn, source)
    if deciding is None:
        with torch.no_grad():
            return None, _values(attn, None, values, {}, tokens, groups, criteria, prefix, tables)
    of_all = bool(criteria.of_the_matrix)
    attention = []
    of_matrix: dict[Criterion, list[Tensor]] = {name: [] for name in criteria.of_the_matrix}
    for group in groups:
        run = group.run
        (k,) = heads(attn, side_by_side(keys, group, tables))
        if rows == "all" or of_all:
            (q,) = heads(attn, side_by_side(deciding, group, tables))
        else:
            (q,) = heads(attn, deciding[run.of_images].unsqueeze(1))
        gaps = None if group.gaps is None else tables[group.gaps]
        shares = None if group.shares is None else tables[group.shares]
        beside = rotation_beside(rotation, group, tables)
        # The CLS token has no position, so its query is not rotated.
        q = placed(attn, attn.q_norm, q, beside if rows == "all" or of_all else None)
        k = placed(attn, attn.k_norm, k, beside)
        weights = attention_rows(q, k, attn.scale, rows, gaps, shares)
        patches = slice(prefix, prefix + group.patches)
        attention.append(weights[:, :, patches])
        if of_all:
            found = matrix_importances(criteria.of_the_matrix, q, k, attn.scale, gaps)
            for name, parts in of_matrix.items():
                parts.append(found[name][:, patches])
    padded = _padded(attention)
    with torch.no_grad():
        return padded, _values(attn, padded, values, of_matrix, tokens, groups, criteria, prefix, tables)


def _values(
    attn: Attention,
    padded: Float[Tensor, "B H N"] | None,
    values: Tensor,
    of_matrix: Mapping[Criterion, Sequence[Tensor]],
    tokens: Tokens,
    groups: Sequence[Group],
    criteria: Criteria,
    prefix: int,
    tables: Sequence[Tensor],
) -> Float[Tensor, "B N"]:
    """The importance of all patches, from their attention weights (``padded``; None if no criterion reads
    them). ``values``: the value vectors of all tokens. ``of_matrix``: the importance per criterion and group
    for criteria that read the attention of all queries."""
    norms = ids = None
    if "mean_value_norm" in criteria.names:
        lengths = torch.linalg.vector_norm(values.unflatten(-1, (attn.num_heads, -1)).float(), dim=-1)
        norms = _padded([_patches(lengths, group, prefix, tables).mT for group in groups])
    if criteria.given:
        flat = tokens.ids.unsqueeze(1)
        ids = _padded([_patches(flat, group, prefix, tables).squeeze(2) for group in groups]).clamp(min=0)
    planes = []
    for name in criteria.names:
        if name in criteria.given:
            assert ids is not None
            planes.append(criteria.given[name].gather(1, ids))
        elif name in of_matrix:
            planes.append(_padded(of_matrix[name]))
        else:
            assert padded is not None
            planes.append(importance(name, padded, value_norms=norms))
    if criteria.chosen is None:
        return planes[0]
    return torch.stack(planes).flatten(0, 1).index_select(0, criteria.chosen)


def _patches(rows: Tensor, group: Group, prefix: int, tables: Sequence[Tensor]) -> Tensor:
    return side_by_side(rows, group, tables)[:, prefix : prefix + group.patches]


def _padded(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate parts along the first dimension, padded with zeros in the last one."""
    if len(parts) == 1:
        return parts[0]
    images = sum(len(part) for part in parts)
    most = max(part.shape[-1] for part in parts)
    padded = parts[0].new_zeros((images, *parts[0].shape[1:-1], most))
    first = 0
    for part in parts:
        padded[first : first + len(part), ..., : part.shape[-1]] = part
        first += len(part)
    return padded


def places_that_stay(
    values: Float[Tensor, "B N"], selection: Selection, prefix: int, tables: Sequence[Tensor]
) -> Int[Tensor, "B most"]:
    """The places of the tokens that each image keeps, ascending: all tokens other than patches, and the
    patches with the largest ``values``. Images with fewer than ``most`` are padded with the last place."""
    values = F.pad(values, (prefix, selection.width - prefix - values.shape[1]), value=torch.inf)
    if selection.chosen_from is not None and selection.others is not None:
        values = torch.where(tables[selection.chosen_from], values, tables[selection.others])
    beyond = None if selection.beyond is None else tables[selection.beyond]
    return most_important(values, selection.most, beyond)


def rows_that_stay(
    places: Int[Tensor, "B most"], selection: Selection, tables: Sequence[Tensor]
) -> Int[Tensor, " kept"]:
    """The flat row numbers of the tokens at these places."""
    if len(places) == 1:
        return places[0]
    if selection.starts is None:
        starts = (torch.arange(len(places), device=places.device) * selection.width).unsqueeze(1)
    else:
        starts = tables[selection.starts]
    numbers = (places + starts).flatten()
    return numbers if selection.entries is None else numbers.index_select(0, tables[selection.entries])
