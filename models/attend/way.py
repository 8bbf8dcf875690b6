"""The protocol of the implementations of attention."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from models.attend.heads import Attention, Parts
from models.ragged import Tokens


@runtime_checkable
class Way(Protocol):
    """An implementation of the attention of a forward pass."""

    @property
    def rounding(self) -> int:
        """The number of steps per power of two to which the rows of pruned batches are rounded up, so that
        few different shapes occur (see `ragged.rounded`); 0: no rounding."""

    def attend(self, attn: Attention, parts: Parts, tokens: Tokens, source: Tokens, block: int) -> Tensor:
        """Compute the outputs of the heads [*rows, H * D] for the queries of each image in ``tokens``, with
        the keys and values of the same image in ``source``.

        ``source``: the same tokens, a superset of them, or their clusters. ``parts``: the queries of
        ``tokens``, and the keys and values of ``source``, before norms and rotary embeddings. ``block``: the
        index of the block, because blocks may have different rotary embeddings.
        """
