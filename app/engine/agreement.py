"""Live agreement: some answered images are run again unpruned while the engine is idle, and how often the
first label stays is counted by keep ratio. So an operator sees what pruning costs on their own traffic.

Pure policy, like the scheduler: it holds what is to be run and counts what came of it; the loop runs it.
"""

import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from app.telemetry import metrics

# Images held until the engine is idle, of about 150 KB each. The last ones that were drawn of a busy stretch
# are kept, so that some of what a brown-out answered is checked when it is over.
MOST_HELD = 4

_EDGES = tuple(step / 10 for step in range(11))
BUCKETS = tuple(f"{low:g}-{high:g}" for low, high in pairwise(_EDGES))


@dataclass(frozen=True, slots=True)
class Check:
    """An answered image: its pixels, and the first label and the keep ratio of its answer."""

    pixels: bytes
    label: int
    keep_ratio: float


class Agreement:
    """Draws ``share`` of the pruned images to be run again; ``draw`` gives numbers from 0 to below 1."""

    def __init__(self, share: float, draw: Callable[[], float] = random.random) -> None:
        self._share = share
        self._draw = draw
        self._held: deque[Check] = deque(maxlen=MOST_HELD)
        if share > 0:
            for bucket in BUCKETS:  # there from the start, so that the first check shows as a rise
                for outcome in ("agreed", "disagreed"):
                    metrics.AGREEMENT_CHECKS.labels(bucket, outcome)

    def __repr__(self) -> str:
        return f"<Agreement of {self._share:g} of the images, {len(self._held)} held>"

    def answered(self, pixels: bytes, label: int, keep_ratio: float) -> None:
        """Consider an image that was just answered. What was not pruned agrees with itself."""
        if keep_ratio < 1 and self._draw() < self._share:
            self._held.append(Check(pixels, label, keep_ratio))

    def take(self) -> Check | None:
        """The next image to run unpruned; None if there is none. Ask while nothing waits and nothing runs."""
        return self._held.popleft() if self._held else None

    def found(self, check: Check, label: int) -> None:
        """Count what the unpruned model says of it."""
        outcome = "agreed" if label == check.label else "disagreed"
        metrics.AGREEMENT_CHECKS.labels(bucket_of(check.keep_ratio), outcome).inc()


def bucket_of(keep_ratio: float) -> str:
    """The tenth that a ratio lies in, its upper edge included: 0.3 is of 0.2-0.3."""
    return BUCKETS[bisect_left(_EDGES, keep_ratio) - 1]
