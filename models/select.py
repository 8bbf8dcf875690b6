"""Selects the patches that each image keeps, by their importance.

All that follows from lengths comes with the plan (plan.py), so a batch takes as many operations as its plan
has groups: one for each run of images of one length, or one in all.
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
    """What each image of a batch is judged by: the different ``names``, where there are several for each
    image its number among the images judged by each of them in turn (``chosen``), and what those of
    `OF_THE_IMAGE` give each patch of the whole image (``given``), which stays the same at all stages."""

    names: tuple[Criterion, ...]
    chosen: Int[Tensor, " B"] | None
    given: Mapping[Criterion, Float[Tensor, "B patches"]]

    @property
    def read_attention(self) -> bool:
        """Whether any of them does."""
        return not OF_THE_IMAGE.issuperset(self.names)

    @property
    def of_the_matrix(self) -> tuple[Criterion, ...]:
        """Those that read the attention of all queries."""
        return tuple(name for name in self.names if name in OF_THE_MATRIX)

    @staticmethod
    def arrays(prunings: Sequence[Pruning]) -> list[np.ndarray]:
        """What `of` needs on the device."""
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
        """``tensors``: what `arrays` gave, on the device. ``patches``: of an image before the first stage.
        ``lives``: what the life predictor gives, if an image is judged by `life`."""
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
    """The rows of a group's images. A view if they are of one length."""
    if group.rows is None:
        return group.run.dense(rows)
    numbered = rows.flatten(0, -2).index_select(0, tables[group.rows])
    return numbered.view(group.run.images, group.run.tokens, -1)


def rotation_beside(
    rotation: Float[Tensor, "rows heads sin_cos"] | None, group: Group, tables: Sequence[Tensor]
) -> Float[Tensor, "images heads tokens sin_cos"] | None:
    """How the tokens of a group's images are rotated (see `Tokens.rotation`)."""
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
    """Attention weights and importance of all patches, N being the most that an image has; behind those of an
    image with fewer stands anything. ``deciding``: query rows, of all tokens or, where ``rows`` is "cls" and
    no criterion reads the attention of all queries, one for each image; None if nothing reads attention,
    which is not computed then. ``source``: keys and values of all
    tokens, ``rotation``: how these are rotated.

    Attention is computed group by group; all that follows is for the whole batch at once, each image in rows
    of its own, so that it is the same alone and in any batch.

    Importance has no gradient; the weights have one where gradients are enabled, for what `fuse` weighs by.
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
            (q,) = heads(attn, deciding[run.first_image : run.first_image + run.images].unsqueeze(1))
        gaps = None if group.gaps is None else tables[group.gaps]
        shares = None if group.shares is None else tables[group.shares]
        beside = rotation_beside(rotation, group, tables)
        # A CLS token has no position.
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
    """Importance of all patches from their attention (``padded``; None if no criterion reads it).
    ``values``: value vectors of all tokens; ``of_matrix``: importance by criterion and group, if it is
    computed from the attention of all queries."""
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
    """Parts that differ in their last dimension, under each other, with zeros if one is shorter."""
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
    """Of each image the tokens that stay, ascending: what is no patch, and the patches of the largest
    ``values``. Where an image has fewer than ``most``, the last place stands behind them."""
    values = F.pad(values, (prefix, selection.width - prefix - values.shape[1]), value=torch.inf)
    if selection.chosen_from is not None and selection.others is not None:
        values = torch.where(tables[selection.chosen_from], values, tables[selection.others])
    beyond = None if selection.beyond is None else tables[selection.beyond]
    return most_important(values, selection.most, beyond)


def rows_that_stay(
    places: Int[Tensor, "B most"], selection: Selection, tables: Sequence[Tensor]
) -> Int[Tensor, " kept"]:
    """The flat numbers of the tokens at these places."""
    if len(places) == 1:
        return places[0]
    if selection.starts is None:
        starts = (torch.arange(len(places), device=places.device) * selection.width).unsqueeze(1)
    else:
        starts = tables[selection.starts]
    numbers = (places + starts).flatten()
    return numbers if selection.entries is None else numbers.index_select(0, tables[selection.entries])
