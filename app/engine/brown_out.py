"""Brown-out: lowering the ratio of images that allow it, before any is refused. Pure policy, no clock.

A brown-out has a depth, from 0 (none). At depth d no image that allows lowering is pruned less than
``CEILINGS[d]`` says, nor more than its own floor. It deepens at once, as far as an image that comes needs
it, and is raised step by step: only while the load that was offered lately, at the costs of the next higher
ratio, would leave some of the engine idle, and while little waits. So it stays where it is under steady load
instead of swinging between a depth that drains the queue and one that fills it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

CEILINGS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
DEPTHS = len(CEILINGS)

# Below this ratio `auto` does not go unless it is told to: accuracy falls fast there (see the README).
AUTO_FLOOR = 0.3

_MEMORY_S = 5.0  # offered load is averaged over about so long
_HOLD_S = 1.0  # at least so long at a depth, before it is raised
_ROOM = 0.85  # share of the engine that the load may take at the higher ratio
_CALM = 0.5  # of the wait at which it was deepened, what may be waited for at the higher ratio


def ratios(asked: float, floor: float | None) -> tuple[float, ...]:
    """The keep ratio of an image at every depth."""
    if floor is None:
        return (asked,) * DEPTHS
    return tuple(min(asked, max(floor, ceiling)) for ceiling in CEILINGS)


@dataclass(slots=True)
class BrownOut:
    """The depth, and what it follows from. Seconds of work are of one stream; there are ``streams``."""

    streams: int
    depth: int = 0
    _offered: list[float] = field(default_factory=lambda: [0.0] * DEPTHS)  # streams kept busy, at each depth
    _at: float = -math.inf
    _changed: float = -math.inf
    _wait_s: float = 0.0

    def offered(self, seconds: Sequence[float], now: float) -> None:
        """An image came, accepted or not, that costs so much at every depth."""
        self._forget(now)
        self._offered = [load + cost / _MEMORY_S for load, cost in zip(self._offered, seconds, strict=True)]

    def deepen(self, depth: int, wait_s: float, now: float) -> None:
        """Go to that depth, where the wait had come to ``wait_s``; never to a lesser one."""
        if depth > self.depth:
            self.depth, self._changed, self._wait_s = depth, now, max(wait_s, self._wait_s)

    def relax(self, backlog: Sequence[float], now: float) -> None:
        """Raise the ratio by a step, if it was held and load and backlog (seconds at every depth) allow."""
        self._forget(now)
        if not self.depth or now < self._changed + _HOLD_S:
            return
        higher = self.depth - 1
        room = self._offered[higher] <= _ROOM * self.streams
        calm = backlog[higher] / self.streams <= _CALM * self._wait_s
        if room and calm:
            self.depth, self._changed = higher, now
            if not higher:
                self._wait_s = 0.0

    def _forget(self, now: float) -> None:
        share = math.exp((self._at - now) / _MEMORY_S) if now > self._at else 1.0
        self._offered = [load * share for load in self._offered]
        self._at = max(now, self._at)
