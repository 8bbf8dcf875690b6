"""Metrics that are counted in plain numbers, and written now and then.

With several processes a metric is a number in a mapped file, and counting with it takes some ten
microseconds. Who counts thousands of times a second adds up here and writes the sums: the dispatcher when it
sees fit, the front end by `observe`, which keeps durations that come many times with every request for a
moment. Whoever reads the metrics of all processes waits ``LATEST_S`` first: then all is there that was
observed before. Counts of images and requests are not kept: a process that is killed takes no answered one
with it.
"""

import asyncio
import os
from bisect import bisect_left

from prometheus_client import Counter, Histogram

from app.telemetry import metrics

LATEST_S = 0.05


class CounterTally:
    """What is to be added to a counter."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._sum = 0.0

    def add(self, amount: float = 1.0) -> None:
        """Count so much more."""
        self._sum += amount

    def write(self) -> None:
        """Into the counter."""
        if self._sum:
            self._counter.inc(self._sum)
            self._sum = 0.0


class HistogramTally:
    """What is to be added to a histogram without labels."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._values: list[float] = []

    def observe(self, value: float) -> None:
        """Count a value."""
        self._values.append(value)

    def write(self) -> None:
        """Into the histogram."""
        if self._values:
            observe_all(self._histogram, self._values)
            self._values = []


_observed: dict[tuple[Histogram, tuple[str, ...]], list[float]] = {}
_shares_files = metrics.SLOT_VARIABLE in os.environ
_due = False


def observe(histogram: Histogram, value: float, *labels: str) -> None:
    """Observe a value of the histogram with these labels."""
    if _keeps():
        _observed.setdefault((histogram, labels), []).append(value)
    else:
        _child(histogram, labels).observe(value)


def write() -> None:
    """Write all that is kept."""
    global _due, _observed
    _due = False
    observed, _observed = _observed, {}
    for (histogram, labels), values in observed.items():
        observe_all(_child(histogram, labels), values)


def observe_all(histogram: Histogram, values: list[float]) -> None:
    """As `observe` of each value. The client library has no such call."""
    buckets: dict[int, int] = {}
    for value in values:
        place = bisect_left(histogram._upper_bounds, value)
        buckets[place] = buckets.get(place, 0) + 1
    for place, number in buckets.items():
        histogram._buckets[place].inc(number)
    histogram._sum.inc(sum(values))


def _keeps() -> bool:
    """Whether what comes now is kept: something will write it."""
    global _due
    if _due:
        return True
    if not _shares_files:
        return False
    try:
        asyncio.get_running_loop().call_later(LATEST_S, write)
    except RuntimeError:  # no loop runs in this thread
        return False
    _due = True
    return True


def _child(histogram: Histogram, labels: tuple[str, ...]) -> Histogram:
    return metrics.labelled(histogram, *labels) if labels else histogram
