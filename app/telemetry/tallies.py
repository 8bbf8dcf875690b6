"""Durations that come many times with every request, written to the metrics together.

To observe one takes a process that shares its metrics by files as long as all else that it does for a metric
ten times over. So they are kept for a moment, and then written at once. Whoever reads the metrics of all
processes waits ``LATEST_S`` first: then all is there that was observed before. Counts of images and requests
are not kept: a process that is killed takes no answered one with it.
"""

import asyncio
import os
from bisect import bisect_left

from prometheus_client import Histogram

from app.telemetry import metrics

LATEST_S = 0.05

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


def _child(metric: metrics.Labelled, labels: tuple[str, ...]) -> metrics.Labelled:
    return metrics.labelled(metric, *labels) if labels else metric
