"""The protocol of all ways to compute attention."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from models.attend.heads import Attention, Parts
from models.ragged import Tokens


@runtime_checkable
class Way(Protocol):
    """A way to compute the attention of one forward pass."""

    @property
    def rounding(self) -> int:
        """The number of parts of a power of two to which the rows of pruned batches are rounded up (see
        `ragged.rounded`), so that there are few shapes; 0: no rounding."""

    def attend(self, attn: Attention, parts: Parts, tokens: Tokens, source: Tokens, block: int) -> Tensor:
        """The outputs of the heads [*rows, H * D] for the queries of each image of ``tokens``, with the keys
        and values of the same image in ``source``: the tokens that these are all or a part of, or clusters of
        them.

        ``parts``: queries of ``tokens``, keys and values of ``source``, neither normed nor rotated.
        ``block``: the block of the attention, because each may rotate differently.
        """
