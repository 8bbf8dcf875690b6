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

from prometheus_client import Counter, Gauge, Histogram, Summary

from app.telemetry import metrics

LATEST_S = 0.05


class CounterTally:
    """An amount to be added to a counter."""

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
    """What is to be added to a histogram or a summary, of which ``histogram`` has no labels or is a child."""

    def __init__(self, histogram: Histogram | Summary) -> None:
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


Observed = Histogram | Summary | Gauge

_observed: dict[tuple[Observed, tuple[str, ...]], list[float]] = {}
_shares_files = metrics.SLOT_VARIABLE in os.environ
_due = False


def observe(metric: Observed, value: float, *labels: str) -> None:
    """Observe a value of the histogram or summary with these labels, or set the gauge to it."""
    if _due or _keeps():
        values = _observed.get((metric, labels))
        if values is None:
            _observed[metric, labels] = [value]
        else:
            values.append(value)
    else:
        observe_all(_child(metric, labels), [value])


def write() -> None:
    """Write all that is kept."""
    global _due, _observed
    _due = False
    observed, _observed = _observed, {}
    for (metric, labels), values in observed.items():
        observe_all(_child(metric, labels), values)


def observe_all(metric: Observed, values: list[float]) -> None:
    """As `observe` of each value. The client library has no such call."""
    # Of its classes, which are protocols, isinstance would take longer than all else here.
    if type(metric) is Histogram:
        _count_in_buckets(metric, values)
    elif type(metric) is Summary:
        metric._count.inc(len(values))
        metric._sum.inc(sum(values))
    elif type(metric) is Gauge:
        metric.set(values[-1])


def _count_in_buckets(histogram: Histogram, values: list[float]) -> None:
    buckets: dict[int, int] = {}
    for value in values:
        place = bisect_left(histogram._upper_bounds, value)
        buckets[place] = buckets.get(place, 0) + 1
    for place, number in buckets.items():
        histogram._buckets[place].inc(number)
    histogram._sum.inc(sum(values))


def _keeps() -> bool:
    """Whether what comes first is kept: something will write it."""
    global _due
    if not _shares_files:
        return False
    try:
        asyncio.get_running_loop().call_later(LATEST_S, write)
    except RuntimeError:  # no loop runs in this thread
        return False
    _due = True
    return True


def _child(metric: Observed, labels: tuple[str, ...]) -> Observed:
    return metrics.labelled(metric, *labels) if labels else metric
