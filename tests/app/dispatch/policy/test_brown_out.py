"""The brown-out's depth: down at once, up step by step, and steady under steady load."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dispatch.policy.brown_out import AUTO_FLOOR, CEILINGS, DEPTHS, BrownOut, ratios

NOTHING = [0.0] * DEPTHS


def test_an_image_that_may_not_be_lowered_keeps_its_ratio() -> None:
    """At every depth."""
    assert ratios(0.77, None) == (0.77,) * DEPTHS


@given(st.floats(0.01, 1), st.floats(0.01, 1))
def test_ratios_fall_from_the_asked_one_to_the_floor(asked: float, share: float) -> None:
    """They never rise with the depth, and never leave the two bounds."""
    floor = asked * share
    found = ratios(asked, floor)
    assert found[0] == asked
    assert all(less <= more for more, less in pairwise(found))
    assert min(found) >= min(floor, asked)
    assert found[-1] == min(asked, max(floor, CEILINGS[-1]))


def test_the_floor_of_auto_is_one_of_the_ceilings() -> None:
    """So the deepest brown-outs change nothing for it, and the ratio it ends at is a round one."""
    assert AUTO_FLOOR in CEILINGS


def test_it_deepens_at_once_and_never_backwards() -> None:
    """An image that needs less depth than there is changes nothing."""
    brown_out = BrownOut(streams=2)
    brown_out.deepen(4, wait_s=1.0, now=0.0)
    brown_out.deepen(2, wait_s=1.0, now=0.0)
    assert brown_out.depth == 4


def test_it_relaxes_a_step_a_second_when_nothing_is_offered() -> None:
    """Not faster, however often it is asked."""
    brown_out = BrownOut(streams=2)
    brown_out.deepen(3, wait_s=1.0, now=10.0)
    depths = []
    for tick in range(40):
        brown_out.relax(NOTHING, 10.0 + tick / 10)
        depths.append(brown_out.depth)
    assert depths == [3] * 10 + [2] * 10 + [1] * 10 + [0] * 10


def test_it_stays_while_the_load_would_not_fit_the_higher_ratio() -> None:
    """Two streams: work of 1.9 a second at the next ratio leaves too little idle, 1.5 leaves enough."""
    for load, relaxes in ((1.9, False), (1.5, True)):
        brown_out = BrownOut(streams=2)
        brown_out.deepen(1, wait_s=1.0, now=0.0)
        for tick in range(400):
            brown_out.offered([load / 10] * DEPTHS, tick / 10)
            if tick > 300:  # before, the average is not there yet
                brown_out.relax(NOTHING, tick / 10)
        assert brown_out.depth == (0 if relaxes else 1)


def test_it_stays_while_much_waits() -> None:
    """Half of the wait at which it was deepened is allowed at the higher ratio, per stream."""
    brown_out = BrownOut(streams=2)
    brown_out.deepen(1, wait_s=1.0, now=0.0)
    brown_out.relax([1.1] * DEPTHS, 50.0)
    assert brown_out.depth == 1
    brown_out.relax([0.9] * DEPTHS, 50.0)
    assert brown_out.depth == 0


def test_on_a_slow_device_all_takes_longer() -> None:
    """At 0.7 of a second an image, two streams are busy for 14 seconds with forty of them: so long between
    steps, where the load is not far below what the worker can do."""
    for image_s, hold_s in ((0.01, 1.0), (0.5, 1.4 * 0.5 * 40 / 2)):
        brown_out = BrownOut(streams=2)
        raised = []
        for step in range(round(400 / image_s)):
            now = step * image_s
            brown_out.offered([1.4 * image_s] * DEPTHS, now)
            if step == round(300 / image_s):
                brown_out.deepen(2, wait_s=1.0, now=now)
            depth = brown_out.depth
            brown_out.relax(NOTHING, now)
            raised += [now] if brown_out.depth < depth else []
        assert raised[1] - raised[0] == pytest.approx(hold_s, rel=0.1)


@pytest.mark.parametrize("load", [0.5, 1.2, 1.6, 2.2, 2.6])
def test_under_steady_load_it_comes_to_rest(load: float) -> None:
    """A fluid queue with one stream, whose work a depth lowers by a tenth each: after a while the depth
    changes no more, though the load may lie anywhere between two depths."""
    costs = [load * (1 - 0.08 * depth) for depth in range(DEPTHS)]
    brown_out = BrownOut(streams=1)
    backlog = 0.0
    depths = []
    for tick in range(6000):
        now = tick / 20
        brown_out.offered([cost / 20 for cost in costs], now)
        backlog = min(4.0, max(0.0, backlog + (costs[brown_out.depth] - 1) / 20))
        waits = [backlog * (1 - 0.08 * depth) / (1 - 0.08 * brown_out.depth) for depth in range(DEPTHS)]
        if waits[brown_out.depth] > 1.0:
            deeper = next((depth for depth in range(DEPTHS) if waits[depth] <= 1.0), DEPTHS - 1)
            brown_out.deepen(deeper, waits[brown_out.depth], now)
        brown_out.relax(waits, now)
        depths.append(brown_out.depth)
    assert len(set(depths[2000:])) == 1
    assert (depths[-1] == 0) == (load <= 1)
