"""An image in the queue, as seen by the queue and the scheduler. Pure data."""

from collections.abc import Hashable
from typing import TypeVar

import msgspec

from app.priority import Priority

T = TypeVar("T")


class Entry(msgspec.Struct, frozen=True):
    """An image in the queue.

    ``seconds`` and ``tokens`` are its predicted cost in a batch at every depth of a brown-out, from 0 (as
    requested) to the deepest. They never rise, and are all equal if the image may not be lowered. ``tokens``
    are the model's, times the share of compute. ``alone_s`` is its time on an idle worker with all threads,
    at every depth. ``deadline`` may be infinite. ``wait_limit_s`` limits the predicted wait of an image
    without a deadline of its own. ``batch_slack_s`` is the time that it left to the images behind it in its
    batch when it was accepted. A batch holds images of one ``model``.
    """

    key: Hashable
    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    alone_s: tuple[float, ...]
    arrived: float
    deadline: float
    wait_limit_s: float = float("inf")
    caller: str = ""
    priority: Priority = "normal"
    least_depth: int = 0
    batch_slack_s: float = 0.0
    model: str = ""

    def leaving(self, batch_slack_s: float) -> "Entry":
        """The entry with this batch slack."""
        return msgspec.structs.replace(self, batch_slack_s=batch_slack_s) if batch_slack_s else self

    def at_least(self, depth: int) -> "Entry":
        """The entry, lowered at least to that depth whatever the depth of the brown-out is."""
        if depth == self.least_depth:
            return self

        def lowered(costs: tuple[T, ...]) -> tuple[T, ...]:
            return (costs[depth],) * depth + costs[depth:]

        return msgspec.structs.replace(
            self,
            tokens=lowered(self.tokens),
            seconds=lowered(self.seconds),
            alone_s=lowered(self.alone_s),
            least_depth=depth,
        )
