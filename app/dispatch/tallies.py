"""Metrics that are counted in plain numbers and written now and then.

With several processes a metric is a number in a mapped file, and counting with it takes some ten
microseconds. Who counts thousands of times a second adds up here, and writes the sums a few times a second.
"""

from prometheus_client import Counter, Histogram

from app.telemetry.tallies import observe_all


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
