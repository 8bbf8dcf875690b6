"""Learned pooling of tokens: the reducer `pool`, after the global aggregation pyramid (arXiv 2310.07664).

In a block that has a `TokenPool`, a stage that keeps n of N patches leaves n means of all of them, weighted
by the softmax over the patches of the products of n learned queries with the patches' keys. docs/methods.md
says what is known of the paper's method and what was reconstructed.

A query belongs to a place of the grid of patches. Which places' queries are used follows from n alone, and
those of fewer are always among those of more: one checkpoint serves every keep ratio.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from models.reducer_macs import KEY_WIDTH
from models.reducers import weighted_means

# Its place in a block, and so a part of its tensors' names in a checkpoint.
NAME = "token_pool"
# How sharply new queries look at their place: a patch one step away has exp(-4) of the weight.
SHARPNESS = 4.0
_EPS = 1e-6


class TokenPool(nn.Module):
    """Pools the patches, ``dim`` values wide, of images of a ``grid`` of (rows, columns).

    Computed in float32, whatever the rows are: its parameters stay in float32 in a network of lower
    precision, where rounding would move the places that queries look at.
    """

    order: Tensor

    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        places = grid[0] * grid[1]
        self.key = nn.Parameter(torch.zeros(KEY_WIDTH, dim))
        self.positions = nn.Parameter(torch.zeros(places, KEY_WIDTH))
        self.queries = nn.Parameter(torch.zeros(places, KEY_WIDTH))
        self.register_buffer("order", torch.from_numpy(spread_order(*grid).copy()), persistent=False)

    def forward(
        self,
        rows: Float[Tensor, "B N D"],
        sizes: Float[Tensor, "B N"],
        places: Int[Tensor, "B N"],
        count: int,
        counts: Int[Tensor, "B 1"] | None = None,
        gaps: Bool[Tensor, "B N"] | None = None,
    ) -> tuple[Float[Tensor, "B count D"], Float[Tensor, "B count"], Int[Tensor, "B count"]]:
        """The tokens that are left, how many patches each stands for, and the places of their queries,
        ascending. ``sizes``: how many patches the rows stand for; ``places``: where they stood.

        A row counts in the means for as many patches as it stands for (see `reducers.weighted_means`).

        Images that differ bring the ``counts`` of tokens that they are to keep, of which ``count`` is the
        largest, and the ``gaps`` if they have no rows. Behind what is left of an image stands anything.
        """
        with torch.autocast(rows.device.type, enabled=False):
            values = rows.float()
            normed = F.layer_norm(values, values.shape[-1:], eps=_EPS)
            keys = F.linear(normed, self.key) + self.positions[places.clamp(min=0)]
            chosen, beyond = self._chosen(count, counts)
            pooled, left = weighted_means(rows, self.queries[chosen] @ keys.mT, sizes, beyond, gaps)
        return pooled, left, chosen.expand(len(rows), -1)

    def _chosen(
        self, count: int, counts: Int[Tensor, "B 1"] | None
    ) -> tuple[Int[Tensor, "*images count"], Bool[Tensor, "B count"] | None]:
        """The places of the queries, ascending, and which are more than an image keeps."""
        first = self.order[:count]
        if counts is None:
            return first.sort().values, None
        beyond = torch.arange(count, device=first.device) >= counts
        # The last place comes last, and in place of those that are missing.
        return first.expand_as(beyond).masked_fill(beyond, len(self.order) - 1).sort(dim=1).values, beyond

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """What moves the network moves this, but leaves it in its precision."""

        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            if found.is_floating_point() and found.dtype.itemsize < tensor.dtype.itemsize:
                return tensor.to(found.device)
            return found

        return super()._apply(moved, recurse)

    @torch.no_grad()
    def begin(self) -> None:
        """Weights to train from: each query looks at its own place, whatever is there.

        The logit of a patch a distance d from the query's place, in steps of the grid, is -SHARPNESS * d ** 2
        (plus a number that is the same for all patches). Of what patches contain queries read nothing yet;
        the keys have it, drawn at random.
        """
        rows, columns = self.grid
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        at = torch.stack((row - (rows - 1) / 2, column - (columns - 1) / 2), dim=2).flatten(0, 1)
        first, further = slice(0, 2), slice(3, None)
        for parameter in self.parameters():
            parameter.zero_()
        self.queries[:, first] = 2 * SHARPNESS * at
        self.queries[:, 2] = -SHARPNESS
        self.positions[:, first] = at
        self.positions[:, 2] = at.square().sum(dim=1)
        self.key[further].normal_(std=self.key.shape[1] ** -0.5)


@lru_cache(maxsize=8)
def spread_order(rows: int, columns: int) -> Int[np.ndarray, " places"]:
    """The places of a grid, row by row, in an order of which every beginning is spread over all of it: from
    the middle on, always the place that is farthest from all before it, the first of several. Not to be
    changed."""
    places = np.arange(rows * columns)
    row, column = np.divmod(places, columns)
    order = np.empty_like(places)
    farthest, nearest = int(rows // 2 * columns + columns // 2), np.full(len(places), np.iinfo(np.int64).max)
    for number in places:
        order[number] = farthest
        distance = (row - row[farthest]) ** 2 + (column - column[farthest]) ** 2
        nearest = np.minimum(nearest, distance)
        farthest = int(nearest.argmax())
    return order


def add_pools(blocks: Sequence[nn.Module], stages: Sequence[int], dim: int, grid: tuple[int, int]) -> None:
    """New ones in the blocks of a network that are ``stages``, as a module of each: so whatever saves,
    copies, averages, freezes or moves the network does so with them, and timm's own forward pass does not
    call them. Raises ValueError for a block that is not there."""
    if stages and max(stages) >= len(blocks):
        raise ValueError(
            f"block {max(stages) + 1} cannot pool tokens: the network has {len(blocks)} blocks "
            "(counted from 1)"
        )
    for block in stages:
        blocks[block].add_module(NAME, TokenPool(dim, grid))


def pool_of(block: nn.Module) -> TokenPool | None:
    """That of a block, if it has one."""
    found = getattr(block, NAME, None)
    return found if isinstance(found, TokenPool) else None


def pooling_blocks(blocks: Sequence[nn.Module]) -> tuple[int, ...]:
    """Which blocks of a network have one."""
    return tuple(index for index, block in enumerate(blocks) if pool_of(block) is not None)


def is_of_pool(name: str) -> bool:
    """Whether a parameter of this name is one of theirs."""
    return f".{NAME}." in name
