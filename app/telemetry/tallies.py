"""Metrics that are counted in plain numbers, and written from time to time.

With several processes, a metric is a number in a mapped file, and counting takes about ten microseconds. Code
that counts thousands of times a second adds up here and writes the sums: the dispatcher when it chooses to,
the front end by `observe`, which keeps durations that occur many times per request for a moment. Whoever
reads the metrics of all processes waits ``LATEST_S`` first, so that everything observed before is included.
Counts of images and requests are written at once, so that a killed process loses none of an answered request.
"""

import asyncio
import os
from bisect import bisect_left

from prometheus_client import Counter, Gauge, Histogram, Summary

from app.telemetry import metrics

LATEST_S = 0.05


class CounterTally:
    """An amount to add to a counter."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._sum = 0.0

    def add(self, amount: float = 1.0) -> None:
        """Add an amount."""
        self._sum += amount

    def write(self) -> None:
        """Write it into the counter."""
        if self._sum:
            self._counter.inc(self._sum)
            self._sum = 0.0


class HistogramTally:
    """Values to add to a histogram or a summary. ``histogram`` has no labels, or is a child."""

    def __init__(self, histogram: Histogram | Summary) -> None:
        self._histogram = histogram
        self._values: list[float] = []

    def observe(self, value: float) -> None:
        """Add a value."""
        self._values.append(value)

    def write(self) -> None:
        """Write them into the histogram."""
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
    """Write all stored values."""
    global _due, _observed
    _due = False
    observed, _observed = _observed, {}
    for (metric, labels), values in observed.items():
        observe_all(_child(metric, labels), values)


def observe_all(metric: Observed, values: list[float]) -> None:
    """As `observe` for each value. The client library has no such call."""
    # These classes are protocols, for which isinstance would take most of the time here.
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
    """Whether values are stored first: something must write them later."""
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
