"""What is counted together comes to the same as one by one."""

import asyncio
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from app.telemetry import tallies

VALUES = [0.05, 0.1, 0.100001, 0.7, 0.7, 3.0, 99.0]


def histogram() -> Histogram:
    return Histogram("seconds", "Some.", ["phase"], buckets=(0.1, 0.5, 1, 5), registry=CollectorRegistry())


def samples(metric: Counter | Histogram) -> dict[tuple[str, tuple[str, ...]], float]:
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
def test_what_is_counted_is_written_a_moment_later() -> None:
    """All at once, by label; and counted on from there."""

    async def main() -> None:
        seconds, images = histogram(), Counter("images", "Some.", ["outcome"], registry=CollectorRegistry())
        for turn in (1, 2):
            for value in VALUES:
                tallies.observe(seconds, value, "decode")
                tallies.count(images, "answered", by=2)
            tallies.count(images, "too-large")
            await asyncio.sleep(2 * tallies.LATEST_S)
            assert samples(images)[("images_total", ("answered",))] == 2 * turn * len(VALUES)
            assert samples(images)[("images_total", ("too-large",))] == turn
            assert samples(seconds)[("seconds_count", ("decode",))] == turn * len(VALUES)

    asyncio.run(main())


@pytest.mark.usefixtures("_shared")
def test_the_end_of_a_process_loses_no_count() -> None:
    """What is kept is written when it is asked for."""

    async def main() -> None:
        images = Counter("images", "Some.", registry=CollectorRegistry())
        tallies.count(images)
        assert samples(images)[("images_total", ())] == 0
        tallies.write()
        assert samples(images)[("images_total", ())] == 1

    asyncio.run(main())


def test_a_process_of_its_own_counts_at_once() -> None:
    """Nobody would write it later: as in tests, or where no event loop runs."""
    images = Counter("images", "Some.", registry=CollectorRegistry())
    tallies.count(images)
    assert samples(images)[("images_total", ())] == 1
