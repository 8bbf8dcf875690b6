"""Learned pooling of tokens: the reducer `pool`, after the global aggregation pyramid (arXiv 2310.07664).

In a block that has a `TokenPool`, a stage that keeps n of N patches computes n means of all patches. The
weights of a mean are the softmax, over the patches, of the products of a learned query with the patches'
keys. docs/methods.md says what is known of the paper's method and what was reconstructed.

Each query belongs to a place in the patch grid. The queries that are used only depend on n, and those for a
smaller n are a subset of those for a larger one, so one checkpoint serves every keep ratio.
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

# The name of the submodule in a block, and so part of its tensors' names in a checkpoint.
NAME = "token_pool"
# How sharply new queries focus on their place: a patch one step away has exp(-4) of the weight.
SHARPNESS = 4.0
_EPS = 1e-6


class TokenPool(nn.Module):
    """Pools the patches of images with a ``grid`` of (rows, columns) patches of ``dim`` values.

    Computed in float32. The parameters stay in float32 even if the network has a lower precision, because
    rounding them would shift the places that the queries focus on.
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
        """Pool patches into ``count`` tokens.

        ``sizes``: the number of patches that each row represents, which weighs it in the means (see
        `reducers.weighted_means`). ``places``: the position of each row in the patch grid.

        For images that differ: ``counts`` are the numbers of tokens to keep, with the maximum ``count``, and
        ``gaps`` is True for places without a row. Values after an image's last token are undefined.

        Returns the tokens, the number of patches that each represents, and the places of their queries,
        ascending.
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
        """The places of the queries, ascending, and a mask that is True after the last one that an image
        keeps."""
        first = self.order[:count]
        if counts is None:
            return first.sort().values, None
        beyond = torch.arange(count, device=first.device) >= counts
        # Missing queries are replaced by the last place, so they are sorted to the end.
        return first.expand_as(beyond).masked_fill(beyond, len(self.order) - 1).sort(dim=1).values, beyond

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Move with the network (`Module.to`, `half`, ...), but do not reduce the precision."""

        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            if found.is_floating_point() and found.dtype.itemsize < tensor.dtype.itemsize:
                return tensor.to(found.device)
            return found

        return super()._apply(moved, recurse)

    @torch.no_grad()
    def begin(self) -> None:
        """Initialize the weights for training, so that each query attends to its own place in the grid.

        A patch at distance d from the query's place, in steps of the grid, has the logit -SHARPNESS * d ** 2
        (plus a constant that is the same for all patches). Queries ignore the content of patches at first,
        but keys contain random projections of it.
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
    """Order the places of a grid (row-major indices) so that the first n, for any n, spread over all of it.

    Farthest-point sampling from the middle: the next place is the one farthest from all places before it, and
    ties go to the first one. The result is cached, so it must not be changed.
    """
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
    """Add a new `TokenPool` to each block in ``stages``.

    They are submodules of the blocks, so they are saved, copied, averaged, frozen and moved with the network.
    timm's own forward pass does not call them. Raises ValueError for a block that does not exist.
    """
    if stages and max(stages) >= len(blocks):
        raise ValueError(
            f"block {max(stages) + 1} cannot pool tokens: the network has {len(blocks)} blocks "
            "(counted from 1)"
        )
    for block in stages:
        blocks[block].add_module(NAME, TokenPool(dim, grid))


def pool_of(block: nn.Module) -> TokenPool | None:
    """The block's `TokenPool`, if it has one."""
    found = getattr(block, NAME, None)
    return found if isinstance(found, TokenPool) else None


def pooling_blocks(blocks: Sequence[nn.Module]) -> tuple[int, ...]:
    """The indices of the blocks that have a `TokenPool`."""
    return tuple(index for index, block in enumerate(blocks) if pool_of(block) is not None)


def is_of_pool(name: str) -> bool:
    """Whether a parameter of this name belongs to a `TokenPool`."""
    return f".{NAME}." in name
