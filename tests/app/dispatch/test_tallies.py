"""Metrics that are counted in plain numbers first."""

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest

from app.dispatch.tallies import CounterTally, HistogramTally

VALUES = (0.0, 0.5, 1.0, 1.0, 1.25, 2.0, 7.5, 100.0)


def test_a_counter_is_the_same_as_if_it_had_been_counted_with() -> None:
    """Once it is written; and writing twice counts once."""
    registry = CollectorRegistry()
    tally = CounterTally(Counter("images", "Images.", registry=registry))
    tally.add()
    tally.add(2.5)
    assert registry.get_sample_value("images_total") == 0
    tally.write()
    tally.write()
    assert registry.get_sample_value("images_total") == 3.5


def test_a_histogram_is_the_same_as_if_it_had_observed_every_value() -> None:
    """Bounds belong to the bucket below them, what lies beyond all to the last one; written in two parts."""

    def histogram() -> tuple[Histogram, CollectorRegistry]:
        registry = CollectorRegistry()
        return Histogram("seconds", "Seconds.", registry=registry, buckets=(1, 2, 5)), registry

    (one, plain), (other, tallied) = histogram(), histogram()
    tally = HistogramTally(other)
    for value in VALUES:
        one.observe(value)
        tally.observe(value)
        if value == 1.25:
            tally.write()
    tally.write()

    def counted(registry: CollectorRegistry) -> list[bytes]:
        return [line for line in generate_latest(registry).splitlines() if b"_created" not in line]

    assert counted(plain) == counted(tallied)
