"""What every way to compute attention can do."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from models.attend.heads import Attention, Parts
from models.ragged import Tokens


@runtime_checkable
class Way(Protocol):
    """A way to compute the attention of one forward pass."""

    @property
    def rounding(self) -> int:
        """Into how many parts of a power of two the rows of pruned batches are to be rounded up (see
        `ragged.rounded`), so that shapes are few; 0: not at all."""

    def attend(self, attn: Attention, parts: Parts, tokens: Tokens, source: Tokens, block: int) -> Tensor:
        """What the heads answer [*rows, H * D] to the queries of each image of ``tokens``, by the keys and
        values of the same image in ``source``: the tokens that these are all or a part of, or clusters of
        them.

        ``parts``: queries of ``tokens``, keys and values of ``source``, neither normed nor rotated.
        ``block``: whose attention it is, as each may rotate otherwise.
        """
