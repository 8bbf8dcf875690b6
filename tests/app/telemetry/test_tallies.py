"""What is counted in plain numbers first, and written together, comes to the same as one by one."""

import asyncio
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary
from prometheus_client.exposition import generate_latest

from app.telemetry import tallies

MANY = (0.0, 0.5, 1.0, 1.0, 1.25, 2.0, 7.5, 100.0)
VALUES = [0.05, 0.1, 0.100001, 0.7, 0.7, 3.0, 99.0]


def histogram() -> Histogram:
    return Histogram("seconds", "Some.", ["phase"], buckets=(0.1, 0.5, 1, 5), registry=CollectorRegistry())


def samples(metric: Histogram) -> dict[tuple[str, tuple[str, ...]], float]:
    """All values but when they were begun."""
    (family,) = metric.collect()
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@pytest.fixture
def _shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that shares its metrics by files."""
    monkeypatch.setattr(tallies, "_shares_files", True)
    yield
    tallies.write()


def test_values_observed_together_are_those_observed_one_by_one() -> None:
    """Also those on a bucket's bound, and beyond the last."""
    together, one_by_one = histogram(), histogram()
    tallies.observe_all(together.labels("decode"), VALUES)
    for value in VALUES:
        one_by_one.labels("decode").observe(value)
    assert samples(together) == pytest.approx(samples(one_by_one))


@pytest.mark.usefixtures("_shared")
def test_what_is_observed_is_written_a_moment_later() -> None:
    """All at once, by label; and on from there."""

    async def main() -> None:
        seconds = histogram()
        for turn in (1, 2):
            for value in VALUES:
                tallies.observe(seconds, value, "decode")
            tallies.observe(seconds, 1.0, "queue")
            await asyncio.sleep(2 * tallies.LATEST_S)
            assert samples(seconds)[("seconds_count", ("decode",))] == turn * len(VALUES)
            assert samples(seconds)[("seconds_count", ("queue",))] == turn

    asyncio.run(main())


@pytest.mark.usefixtures("_shared")
def test_summaries_add_up_and_gauges_take_the_last_value() -> None:
    """By label, as if each had been observed or set at once."""
    registry = CollectorRegistry()
    summary = Summary("seconds", "Some.", ["model"], registry=registry)
    gauge = Gauge("last", "The last one.", ["model"], registry=registry)

    async def main() -> None:
        for value in VALUES:
            tallies.observe(summary, value, "toy")
            tallies.observe(gauge, value, "toy")
        tallies.write()

    asyncio.run(main())
    of_toy = {"model": "toy"}
    assert registry.get_sample_value("seconds_count", of_toy) == len(VALUES)
    assert registry.get_sample_value("seconds_sum", of_toy) == pytest.approx(sum(VALUES))
    assert registry.get_sample_value("last", of_toy) == VALUES[-1]


@pytest.mark.usefixtures("_shared")
def test_what_is_kept_is_written_when_it_is_asked_for() -> None:
    """And not before."""

    async def main() -> None:
        seconds = histogram()
        tallies.observe(seconds, 1.0, "decode")
        assert ("seconds_count", ("decode",)) not in samples(seconds)
        tallies.write()
        assert samples(seconds)[("seconds_count", ("decode",))] == 1

    asyncio.run(main())


def test_a_process_of_its_own_observes_at_once() -> None:
    """Nobody would write it later: as in tests, or where no event loop runs."""
    seconds = histogram()
    tallies.observe(seconds, 1.0, "decode")
    assert samples(seconds)[("seconds_count", ("decode",))] == 1


def test_a_counter_is_the_same_as_if_it_had_been_counted_with() -> None:
    """Once it is written; and writing twice counts once."""
    registry = CollectorRegistry()
    tally = tallies.CounterTally(Counter("images", "Images.", registry=registry))
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
    tally = tallies.HistogramTally(other)
    for value in MANY:
        one.observe(value)
        tally.observe(value)
        if value == 1.25:
            tally.write()
    tally.write()

    def counted(registry: CollectorRegistry) -> list[bytes]:
        return [line for line in generate_latest(registry).splitlines() if b"_created" not in line]

    assert counted(plain) == counted(tallied)
