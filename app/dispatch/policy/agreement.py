"""Live agreement: some answered images are computed again without pruning while the workers are idle. How
often the first label stays the same is counted by keep ratio, so an operator sees the effect of pruning on
their own traffic.

Pure policy, like the scheduler: it chooses the images and counts the results; the dispatcher has them
computed.
"""

import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from app.telemetry import metrics

# Number of images held until the workers are idle; each worker keeps the pixels of this many. The last ones
# drawn in a busy period are kept, so that some answers of a brown-out are checked when it ends.
MOST_HELD = 4

_EDGES = tuple(step / 10 for step in range(11))
BUCKETS = tuple(f"{low:g}-{high:g}" for low, high in pairwise(_EDGES))


@dataclass(frozen=True, slots=True)
class Check:
    """An answered image: the worker that holds its pixels, their number there, and the first label and the
    keep ratio of its answer."""

    worker: int
    hold: int
    label: int
    keep_ratio: float


class Agreement:
    """Draws a ``share`` of the pruned images to be computed again. ``draw`` returns numbers from 0 to below
    1."""

    def __init__(self, share: float, draw: Callable[[], float] = random.random) -> None:
        self._share = share
        self._draw = draw
        self._drawn = 0
        self._held: deque[Check] = deque(maxlen=MOST_HELD)
        if share > 0:
            for bucket in BUCKETS:  # create the series at the start, so that the first check shows as a rise
                for outcome in ("agreed", "disagreed"):
                    metrics.AGREEMENT_CHECKS.labels(bucket, outcome)

    def __repr__(self) -> str:
        return f"<Agreement of {self._share:g} of the images, {len(self._held)} held>"

    def draw(self) -> int | None:
        """The number under which a worker keeps an image that it is about to compute. None for most
        images."""
        if not self._share or self._draw() >= self._share:
            return None
        self._drawn += 1
        return self._drawn

    def answered(self, check: Check) -> None:
        """Note the answer of an image that was drawn. An unpruned image agrees with itself."""
        if check.keep_ratio < 1:
            self._held.append(check)

    def take(self) -> Check | None:
        """The next image to compute without pruning. None if there is none. Call it while nothing waits and
        nothing runs."""
        return self._held.popleft() if self._held else None

    def lost(self, worker: int) -> None:
        """Forget the images whose pixels were held by a worker that is gone."""
        kept = [check for check in self._held if check.worker != worker]
        self._held.clear()
        self._held.extend(kept)

    def found(self, check: Check, label: int) -> None:
        """Count the answer of the unpruned model."""
        outcome = "agreed" if label == check.label else "disagreed"
        metrics.AGREEMENT_CHECKS.labels(bucket_of(check.keep_ratio), outcome).inc()


def bucket_of(keep_ratio: float) -> str:
    """The tenth that a ratio belongs to, including its upper edge: 0.3 belongs to 0.2-0.3."""
    return BUCKETS[bisect_left(_EDGES, keep_ratio) - 1]
