"""The promises under load, over hours of made-up time: see simulation.py.

The device is ten times slower than the one its costs were measured on, so that hours hold fewer images.
"""

import math
import statistics
from collections.abc import Iterator
from functools import cache

import pytest

from app.dispatch.policy.brown_out import CEILINGS
from app.dispatch.policy.fair_queue import Priority
from tests.app.dispatch.policy.simulation import (
    LIMITS,
    Device,
    Outcome,
    Request,
    Simulation,
    capacity,
    merged,
    poisson,
)

SCALE = 10.0
CAPACITY = capacity(1.0, SCALE)
DEADLINE_S = 10.0
MINUTES = 60.0
# Every promise is tried for some minutes, and with the marker `long` for an hour or more.
LENGTHS = [3, pytest.param(60, marks=pytest.mark.long)]

# A stand-in for a GPU: every batch costs as much as fifteen images besides.
OVERHEAD_S = 15 / CAPACITY
OVERHEAD_BATCH_S = Device(1, SCALE, 0.0, 0.0, OVERHEAD_S).seconds([1.0] * 15, 1)


@cache
def under(
    load: float, floor: float | None, minutes: int, overhead_s: float = 0.0, deadline_s: float = DEADLINE_S
) -> tuple[Simulation, list[Outcome]]:
    """So many times what the worker can do unpruned (without overhead), from one caller, evenly."""
    simulation = Simulation(Device(1, SCALE, overhead_s=overhead_s))
    like = Request(0.0, 1.0, floor, deadline_s)
    return simulation, simulation.run(poisson(load * CAPACITY, 0.0, minutes * MINUTES, 3, like))


def goodput(outcomes: list[Outcome]) -> int:
    return sum(outcome.in_time for outcome in outcomes)


def late_share(outcomes: list[Outcome]) -> float:
    """Of those accepted and not withdrawn, how many had no answer by their deadline."""
    waited = [outcome for outcome in outcomes if outcome.accepted and outcome.gone_at is None]
    return sum(not outcome.in_time for outcome in waited) / len(waited)


@pytest.mark.parametrize("minutes", LENGTHS)
@pytest.mark.parametrize("floor", [None, 0.3])
def test_ten_times_the_load_does_not_lower_goodput(floor: float | None, minutes: int) -> None:
    """It stays within 5 % of the peak over all loads, and 99 of 100 accepted are in time."""
    peak = max(goodput(under(load, floor, minutes)[1]) for load in (1.0, 1.5, 3.0))
    _, outcomes = under(10.0, floor, minutes)
    assert goodput(outcomes) >= 0.95 * peak
    assert late_share(outcomes) <= 0.01


@pytest.mark.parametrize("minutes", LENGTHS)
def test_nor_on_a_device_that_needs_full_batches(minutes: int) -> None:
    """Where every batch costs as much as fifteen images besides, deadlines must not cut batches short: the
    goodput at ten times the load is that of full batches still."""
    loads = {
        load: under(load, None, minutes, OVERHEAD_S, 4 * OVERHEAD_BATCH_S)[1] for load in (1.0, 3.0, 10.0)
    }
    assert goodput(loads[10.0]) >= 0.95 * max(goodput(outcomes) for outcomes in loads.values())
    assert goodput(loads[10.0]) >= 0.95 * LIMITS.streams * 15 / OVERHEAD_BATCH_S * minutes * MINUTES
    assert late_share(loads[10.0]) <= 0.01


@pytest.mark.parametrize("minutes", LENGTHS)
def test_a_brown_out_answers_at_least_twice_as_many(minutes: int) -> None:
    """Where all images allow 0.3 and the load is there."""
    _, rigid = under(10.0, None, minutes)
    _, lowered = under(10.0, 0.3, minutes)
    assert goodput(lowered) >= 2 * goodput(rigid)


def test_refusals_are_honest() -> None:
    """Whoever comes again after the time that was told is accepted then, if others do not come before."""
    simulation = Simulation(Device(1, SCALE, noise=0.0, outliers=0.0))
    burst = [Request(0.001 * number, deadline_s=DEADLINE_S) for number in range(100)]
    first = next(outcome for outcome in simulation.run(burst) if outcome.refused)
    assert first.refused is not None
    assert first.refused.retry_after_s is not None
    again = Simulation(Device(1, SCALE, noise=0.0, outliers=0.0))
    accepted = [outcome.request for outcome in simulation.outcomes if outcome.request.at < first.request.at]
    for later, expected in ((0.5, False), (1.25, True)):
        again = Simulation(Device(1, SCALE, noise=0.0, outliers=0.0))
        at = first.request.at + later * first.refused.retry_after_s
        outcomes = again.run([*accepted, Request(at, deadline_s=DEADLINE_S)])
        assert outcomes[-1].accepted == expected


@pytest.mark.parametrize(
    ("scale", "minutes"),
    [
        pytest.param(1.0, 3, id="bundled"),
        pytest.param(SCALE, 10, id="slow"),
        pytest.param(1.0, 30, id="bundled-long", marks=pytest.mark.long),
        pytest.param(SCALE, 120, id="slow-long", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize(("load", "least_ratio"), [(0.7, 1.0), (1.1, 0.8), (1.5, 0.6)])
def test_under_steady_load_the_brown_out_comes_to_rest_where_it_is_needed(
    load: float, least_ratio: float, scale: float, minutes: int
) -> None:
    """No oscillation: after a third of the time at most two steps more, or one in ten minutes. No ratio is
    lower than the load asks for, and nobody is refused. A slower device has as much longer deadlines."""
    simulation = Simulation(Device(1, scale))
    like = Request(0.0, 1.0, 0.1, scale)
    end = minutes * MINUTES
    outcomes = simulation.run(poisson(load * capacity(1.0, scale), 0.0, end, 3, like))
    steps = [depth for at, depth in simulation.depths if end / 3 < at < end]
    assert len(steps) <= max(2, minutes / 10)
    ratios = [outcome.keep_ratio for outcome in outcomes if outcome.in_time and outcome.request.at > end / 3]
    assert statistics.mean(ratios) >= least_ratio - 0.01
    assert all(outcome.accepted for outcome in outcomes)


def test_before_anyone_is_refused_those_who_allow_it_are_lowered() -> None:
    """Whenever an image is refused the brown-out is as deep as it gets."""
    for load, floor in ((3.0, 0.3), (10.0, 0.3)):
        simulation, outcomes = under(load, floor, 3)
        refused = [outcome.request.at for outcome in outcomes if outcome.refused]
        assert refused
        depths = iter(simulation.depths)
        depth, following = 0, next(depths)
        for at in refused:
            while following is not None and following[0] <= at:
                depth, following = following[1], next(depths, None)  # type: ignore[assignment]
            assert CEILINGS[depth] <= floor, f"refused at {at} with ratios at {CEILINGS[depth]}"


@pytest.fixture(scope="module", params=[12, pytest.param(120, marks=pytest.mark.long)])
def day(request: pytest.FixtureRequest) -> tuple[Simulation, list[Outcome]]:
    """Some minutes or two hours: a ramp up to three times the capacity and down again, bursts of a hundred
    images at once, three callers with wants of their own, clients who go away, and a quiet end."""
    end = request.param * MINUTES
    streams = []
    for step in range(24):
        start = step * end / 24
        load = 3.0 * math.sin(math.pi * step / 24)
        wants = (
            Request(0, 1.0, 0.3, DEADLINE_S, "patient", "normal"),
            Request(0, 0.7, None, DEADLINE_S / 2, "rigid", "high", gives_up_s=6.0),
            Request(0, 1.0, 0.3, None, "crawler", "batch", gives_up_s=15.0),
        )
        if load:
            streams += [
                poisson(load * CAPACITY / 3, start, start + end / 24, 100 * step + number, want)
                for number, want in enumerate(wants)
            ]
    at = 200.0
    while at < end:
        streams.append([Request(at, 1.0, 0.5, DEADLINE_S, "burst")] * 100)
        at += 331.0
    simulation = Simulation(Device(5, SCALE))
    streams.append(
        poisson(0.1 * CAPACITY, end, end + 2 * MINUTES, 1, Request(0.0, 1.0, 0.3, DEADLINE_S, "last"))
    )
    return simulation, simulation.run(merged(*streams))


def test_through_ramps_and_bursts_each_request_ends_exactly_once(
    day: tuple[Simulation, list[Outcome]],
) -> None:
    """Answered, refused, expired or withdrawn."""
    _, outcomes = day
    assert len(outcomes) > 4_000
    assert all(outcome.ends == 1 for outcome in outcomes)
    ways = [
        sum(outcome.answered_at is not None for outcome in outcomes),
        sum(outcome.refused is not None for outcome in outcomes),
        sum(outcome.gone_at is not None for outcome in outcomes),
    ]
    assert min(ways) > 0


def test_through_ramps_and_bursts_promises_are_kept(day: tuple[Simulation, list[Outcome]]) -> None:
    """Of those accepted with a deadline, at most one of a hundred is late; ratios stay within bounds."""
    _, outcomes = day
    assert late_share([outcome for outcome in outcomes if outcome.request.deadline_s]) <= 0.01
    for outcome in outcomes:
        if outcome.answered_at is not None:
            asked = outcome.request
            floor = asked.keep_ratio if asked.floor is None else asked.floor
            assert floor <= outcome.keep_ratio <= asked.keep_ratio


def test_when_the_load_is_gone_ratios_are_as_asked(day: tuple[Simulation, list[Outcome]]) -> None:
    """A brown-out does not outlive its reason, here by two minutes."""
    simulation, outcomes = day
    assert max(depth for _, depth in simulation.depths) > 3
    assert simulation.depths[-1][1] == 0
    assert outcomes[-1].keep_ratio == 1.0


def test_predictions_are_good(day: tuple[Simulation, list[Outcome]]) -> None:
    """Through all that, with noise of 5 % and some batches held up, half of the errors are below a tenth."""
    simulation, _ = day
    assert statistics.median(simulation.errors) < 0.1


@pytest.mark.parametrize("minutes", LENGTHS)
def test_a_flood_does_not_delay_the_others(minutes: int) -> None:
    """One caller asks ten times what the worker can do; three who ask a tenth of it each are answered, all
    of them, and in time. The flood gets what is left."""
    end = minutes * MINUTES
    streams = [
        poisson(0.1 * CAPACITY, 0.0, end, number, Request(0.0, 1.0, None, DEADLINE_S, f"modest {number}"))
        for number in range(3)
    ]
    flood = poisson(10 * CAPACITY, 0.0, end, 9, Request(0.0, 1.0, None, DEADLINE_S, "flood"))
    outcomes = Simulation(Device(1, SCALE)).run(merged(flood, *streams))
    modest_ones = [outcome for outcome in outcomes if outcome.request.caller != "flood"]
    assert sum(outcome.in_time for outcome in modest_ones) >= 0.99 * len(modest_ones)
    flooding = [outcome for outcome in outcomes if outcome.request.caller == "flood"]
    assert goodput(flooding) == pytest.approx(0.7 * CAPACITY * end, rel=0.15)


@pytest.mark.parametrize("minutes", LENGTHS)
def test_two_floods_share_alike_by_cost(minutes: int) -> None:
    """One asks for full images, one for pruned ones, both far too many: each gets half of the worker."""
    end = minutes * MINUTES
    streams = [
        poisson(5 * CAPACITY, 0.0, end, number, Request(0.0, ratio, None, DEADLINE_S, f"at {ratio}"))
        for number, ratio in enumerate((1.0, 0.3))
    ]
    outcomes = Simulation(Device(1, SCALE)).run(merged(*streams))
    full, pruned = (
        sum(outcome.in_time for outcome in outcomes if outcome.request.keep_ratio == ratio)
        for ratio in (1.0, 0.3)
    )
    dearer = capacity(0.3, SCALE) / CAPACITY
    assert pruned / full == pytest.approx(dearer, rel=0.2)


@pytest.mark.parametrize("minutes", [10, pytest.param(60, marks=pytest.mark.long)])
def test_no_priority_starves_and_each_has_its_share(minutes: int) -> None:
    """All three ask far too much: they get 16, 4 and 1 of 21 parts."""
    end = minutes * MINUTES
    priorities: tuple[Priority, ...] = ("high", "normal", "batch")
    streams = [
        poisson(3 * CAPACITY, 0.0, end, number, Request(0.0, 1.0, None, 60.0, "same", priority))
        for number, priority in enumerate(priorities)
    ]
    outcomes = Simulation(Device(1, SCALE)).run(merged(*streams))
    answered = [outcome.request.priority for outcome in outcomes if outcome.in_time]
    parts = [answered.count(priority) / len(answered) for priority in priorities]
    assert parts == pytest.approx([16 / 21, 4 / 21, 1 / 21], abs=0.03)


def test_auto_takes_the_largest_ratio_that_is_in_time() -> None:
    """On a quiet worker it is as large as the deadline allows: the tighter, the smaller."""
    means = []
    for deadline_s in (0.20, 0.25, 0.6):
        like = Request(0.0, 1.0, 0.3, deadline_s)
        simulation = Simulation(Device(1, SCALE))
        outcomes = simulation.run(poisson(0.1 * CAPACITY, 0.0, 5 * MINUTES, 3, like))
        lone = [outcome for outcome in outcomes if outcome.in_time]
        assert len(lone) > 0.6 * len(outcomes)
        means.append(statistics.mean(outcome.keep_ratio for outcome in lone))
    assert means[0] < means[1] < means[2]
    assert means[2] > 0.9


@pytest.mark.parametrize("pace", [0.5, 2.0])
def test_a_device_that_changes_its_pace_is_followed(pace: float) -> None:
    """After a minute at another pace promises are kept again, and no more is refused than need be."""
    device = Device(1, SCALE)
    simulation = Simulation(device)
    device.scale *= pace
    like = Request(0.0, 1.0, None, DEADLINE_S * max(1.0, pace))
    outcomes = simulation.run(poisson(3 * CAPACITY / pace, 0.0, 6 * MINUTES, 3, like))
    later = [outcome for outcome in outcomes if outcome.request.at > 2 * MINUTES]
    assert late_share(later) <= 0.01
    assert goodput(later) >= 0.9 * CAPACITY / pace * 4 * MINUTES


def test_where_others_take_half_of_the_worker_promises_hold_again_within_two_seconds() -> None:
    """HTTP and decoding run on the worker's cores. Not kept is what was promised when nobody could know: in
    the second before, which is as long as the deadlines, and in the two seconds after."""
    device = Device(1)
    halved = [(start, start + MINUTES / 3) for start in (MINUTES / 3, MINUTES, 5 * MINUTES / 3)]

    def requests() -> Iterator[Request]:
        for request in poisson(5 * capacity(1.0), 0.0, 2 * MINUTES, 3, Request(0.0, deadline_s=1.0)):
            device.scale = 2.0 if any(start <= request.at < end for start, end in halved) else 1.0
            yield request

    outcomes = Simulation(device).run(requests())
    settled = [
        outcome
        for outcome in outcomes
        if outcome.request.at > 2 and all(not -1 <= outcome.request.at - start < 2 for start, _ in halved)
    ]
    assert late_share(settled) <= 0.01
    assert goodput(outcomes) >= 0.9 * capacity(1.0) * 1.5 * MINUTES
