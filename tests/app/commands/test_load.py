"""When images are sent and how long they took, on a clock that only moves while everybody waits."""

import asyncio
import random
import selectors
from collections.abc import Awaitable, Callable
from itertools import pairwise, takewhile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.commands.load import Mix, Outcome, Sample, closed_loop, open_loop, poisson_arrivals


class LeapingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock leaps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self._now = 0.0
        outer = self

        class Selector(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> Any:
                ready = super().select(0)
                if not ready and timeout:
                    outer._now += timeout
                return ready

        super().__init__(Selector())

    def time(self) -> float:
        return self._now


def run(load: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        runner.run(load())  # type: ignore[arg-type]


ONE = Mix((), random.Random(0))


def test_a_closed_loop_sends_when_it_is_answered() -> None:
    """Two workers and half a second each: four images a second, and never more than two under way."""
    samples: list[Sample] = []
    under_way = most = 0

    async def send(_: float | None) -> Outcome:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.5)
        under_way -= 1
        return Outcome("200")

    run(lambda: closed_loop(send, ONE, 2, 3.0, samples.append))
    assert len(samples) == 12
    assert most == 2
    assert [sample.latency_s for sample in samples] == pytest.approx([0.5] * 12)
    assert all(sample.due_s == sample.sent_s < 3.0 for sample in samples)


def test_an_open_loop_sends_whatever_the_server_does() -> None:
    """Each image at its time, and all are waited for."""
    samples: list[Sample] = []

    async def send(_: float | None) -> Outcome:
        await asyncio.sleep(10)
        return Outcome("200")

    run(lambda: open_loop(send, ONE, iter([0.0, 0.25, 1.0, 1.5, 2.0]), 100, 2.0, samples.append))
    assert [sample.sent_s for sample in samples] == pytest.approx([0.0, 0.25, 1.0, 1.5])
    assert [sample.latency_s for sample in samples] == pytest.approx([10.0] * 4)


def test_a_stall_counts_for_every_image_that_was_due_meanwhile() -> None:
    """The server stands still from the first second to the third and takes one image at a time: the latency
    of the images behind it is from when they were due, however quickly they were answered when sent."""
    samples: list[Sample] = []

    async def send(_: float | None) -> Outcome:
        now = asyncio.get_running_loop().time()
        await asyncio.sleep(3.0 - now if 1.0 <= now < 3.0 else 0.0)
        return Outcome("200")

    run(lambda: open_loop(send, ONE, iter([0.0, 1.0, 1.5, 2.0, 4.0]), 1, 5.0, samples.append))
    assert [sample.latency_s for sample in samples] == pytest.approx([0.0, 2.0, 1.5, 1.0, 0.0])
    assert [sample.latency_from_send_s for sample in samples] == pytest.approx([0.0, 2.0, 0.0, 0.0, 0.0])


def test_no_more_than_allowed_are_under_way() -> None:
    """However many are due."""
    under_way = most = 0

    async def send(_: float | None) -> Outcome:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(1)
        under_way -= 1
        return Outcome("200")

    run(lambda: open_loop(send, ONE, iter([0.0] * 20), 3, 5.0, lambda _: None))
    assert most == 3


@given(st.floats(0.5, 200), st.integers(0, 2**32))
def test_arrivals_ascend_and_come_from_the_seed(rate: float, seed: int) -> None:
    """The same seed gives the same times."""
    first, second = (poisson_arrivals(rate, random.Random(seed)) for _ in range(2))
    times = [next(first) for _ in range(20)]
    assert times == [next(second) for _ in range(20)]
    assert all(before < after for before, after in pairwise([0.0, *times]))


def test_arrivals_come_at_the_rate_and_at_random() -> None:
    """Of 40 a second, some 40,000 in a thousand seconds (five standard deviations); their spacing varies as
    much as it is long, which sets random times apart from even ones."""
    times = list(takewhile(lambda time: time < 1000, poisson_arrivals(40, random.Random(1))))
    assert abs(len(times) - 40_000) < 5 * 200
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.05)


def test_a_mix_draws_all_ratios_alike_often() -> None:
    """And asks for none where there are none."""
    mix = Mix((0.3, 0.5, 1.0), random.Random(0))
    drawn = [mix() for _ in range(3000)]
    assert {ratio: abs(drawn.count(ratio) - 1000) < 130 for ratio in set(drawn)} == {
        0.3: True, 0.5: True, 1.0: True,
    }  # fmt: skip
    assert ONE() is None
