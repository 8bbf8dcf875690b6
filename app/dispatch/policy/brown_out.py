"""Brown-out: lowering the keep ratio of images that allow it, before any is refused. Pure policy, no clock.

A brown-out has a depth, from 0 (none). At depth d, the ratio of an image that allows lowering is at most
``CEILINGS[d]``, but not below the image's own minimum. The depth increases at once if an arriving image needs
it to be in time. It increases step by step while images wait long and more work arrives than the workers can
do. It decreases step by step while little waits, and only if the recent work at the next higher ratio would
leave some of the workers idle. If that soon proves wrong, the next step comes later.

The conditions for increasing and decreasing are apart, so under steady load the depth stays where it is
instead of swinging between one that drains the queue and one that fills it. All its times grow with the time
of an image: a short average over a slow device's few images would mostly be chance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

CEILINGS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
DEPTHS = len(CEILINGS)

# `auto` does not go below this ratio by default, because accuracy falls fast there (see docs/models.md).
AUTO_FLOOR = 0.3

_HOLD_S = 1.0  # minimum time at a depth before the next step
_HOLD_IMAGES = 40  # also at least as long as this many images take at the ratios asked for
_MEMORY = 10.0  # the offered load is averaged over about this many holds
_QUIET_MEMORY_S = 10.0  # a second average over about this time quickly detects that the load has fallen
_LONGEST_HOLD = 15.0
_IMAGE_SHARE = 0.01  # weight of each image in the moving average of image times
_TRIAL = 3.0  # a step up has failed if the depth is needed again within this many holds
# Below this load at the ratios asked for, as a share of the worker, a long hold is not needed.
_QUIET = 0.5
_FULL = 0.95  # minimum load for a step down, as a share of the worker
_ROOM = 0.8  # maximum load at the higher ratio for a step up, as a share of the worker
# Maximum wait at the higher ratio for a step up, as a share of the wait that caused the step down.
_CALM = 0.5


def ratios(asked: float, floor: float | None) -> tuple[float, ...]:
    """The keep ratio of an image at every depth."""
    if floor is None:
        return (asked,) * DEPTHS
    return tuple(min(asked, max(floor, ceiling)) for ceiling in CEILINGS)


class ByDepth(Protocol):
    """A number for every depth."""

    def __getitem__(self, depth: int, /) -> float: ...


@dataclass(slots=True)
class BrownOut:
    """The depth, and what it depends on. Seconds of work are for one stream; there are ``streams``."""

    streams: int
    depth: int = 0
    # Mean number of busy streams: for images that may not be lowered, and for others at each depth.
    _alike: float = 0.0
    _lowered: list[float] = field(default_factory=lambda: [0.0] * DEPTHS)
    _asked: float = 0.0  # busy streams at the ratios asked for (shorter average)
    _at: float = -math.inf
    _began: float = math.inf
    _image_s: float = 0.0
    _changed: float = -math.inf
    _raised: float = -math.inf
    _holds: float = 1.0  # number of minimum holds before a depth is raised
    _wait_s: float = 0.0

    def offered(self, seconds: Sequence[float], now: float) -> None:
        """Count an image that arrived, accepted or not, with its cost at every depth."""
        if self._began == math.inf:
            self._began, self._image_s = now, seconds[0]
        self._image_s += _IMAGE_SHARE * (seconds[0] - self._image_s)
        memory_s, shorter_s = self._memories_s(now)
        self._fade(now, memory_s, shorter_s)
        if seconds[0] == seconds[-1]:
            self._alike += seconds[0] / memory_s
        else:
            self._lowered = [
                load + cost / memory_s for load, cost in zip(self._lowered, seconds, strict=True)
            ]
        self._asked += seconds[0] / shorter_s

    def deepen(self, depth: int, wait_s: float, now: float) -> None:
        """Increase the depth to this one, if it is not there yet. The wait had come to ``wait_s``."""
        if depth <= self.depth:
            return
        in_vain = now < self._raised + _TRIAL * self._holds * self._hold_s
        self._holds = min(_LONGEST_HOLD, 2 * self._holds) if in_vain else max(1.0, self._holds / 2)
        self.depth, self._changed, self._wait_s = depth, now, max(wait_s, self._wait_s)

    def press(self, wait_s: float, now: float) -> None:
        """Increase the depth by one step for an image that will wait long, if the last change is long enough
        ago and the workers are overloaded."""
        self._forget(now)
        overloaded = self._offered(self.depth) > _FULL * self.streams
        if overloaded and now >= self._changed + self._hold_s and self.depth < DEPTHS - 1:
            self.deepen(self.depth + 1, wait_s, now)

    def relax(self, backlog: ByDepth, now: float) -> None:
        """Decrease the depth by one step, if the last change is long enough ago and load and backlog (seconds
        at every depth) allow it."""
        if not self.depth:
            return
        self._forget(now)
        quiet = self._asked <= _QUIET * self.streams
        if now < self._changed + (_HOLD_S if quiet else self._holds * self._hold_s):
            return
        higher = self.depth - 1
        room = quiet or self._offered(higher) <= _ROOM * self.streams
        calm = backlog[higher] / self.streams <= _CALM * self._wait_s
        if room and calm:
            self.depth, self._changed, self._raised = higher, now, now
            if not higher:
                self._wait_s = 0.0

    def _offered(self, depth: int) -> float:
        return self._alike + self._lowered[depth]

    @property
    def _hold_s(self) -> float:
        return max(_HOLD_S, _HOLD_IMAGES * self._image_s / self.streams)

    def _memories_s(self, now: float) -> tuple[float, float]:
        """The time over which the load is averaged: at first no more than has passed."""
        hold_s = self._hold_s
        there_was = max(hold_s, now - self._began)
        return min(_MEMORY * hold_s, there_was), min(max(_QUIET_MEMORY_S, hold_s), there_was)

    def _forget(self, now: float) -> None:
        if now > self._at:
            self._fade(now, *self._memories_s(now))

    def _fade(self, now: float, memory_s: float, shorter_s: float) -> None:
        if now <= self._at:
            return
        share = math.exp((self._at - now) / memory_s)
        self._alike *= share
        if self._lowered[0]:
            self._lowered = [load * share for load in self._lowered]
        self._asked *= math.exp((self._at - now) / shorter_s)
        self._at = now
