"""Durations predicted from the last ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dispatch.policy.smoothed import Smoothed

DURATIONS = st.lists(st.floats(0.0, 100.0), min_size=1, max_size=50)


def observed(durations: list[float]) -> Smoothed:
    smoothed = Smoothed()
    for seconds in durations:
        smoothed.observe(seconds)
    return smoothed


def test_before_the_first_nothing_is_known() -> None:
    """And nothing is predicted to take any time."""
    assert Smoothed().most == 0


def test_the_first_may_be_exceeded_threefold() -> None:
    """RFC 6298, section 2.2: R + 4 * R/2."""
    assert observed([2.0]).most == 6.0


def test_an_example() -> None:
    """RFC 6298, section 2.3: the deviation is smoothed first, from the mean of before."""
    smoothed = observed([2.0, 4.0])
    assert (smoothed.mean, smoothed.deviation) == (2.25, 1.25)


@given(durations=DURATIONS)
def test_the_mean_lies_among_the_durations(durations: list[float]) -> None:
    """And hardly any are predicted to take less than it."""
    smoothed = observed(durations)
    assert min(durations) - 1e-9 <= smoothed.mean <= max(durations) + 1e-9
    assert smoothed.most >= smoothed.mean


@given(before=DURATIONS, seconds=st.floats(0.001, 10.0))
def test_what_came_before_is_forgotten(before: list[float], seconds: float) -> None:
    """After a while of durations alike they are predicted, with little doubt."""
    assert observed([*before, *[seconds] * 150]).most == pytest.approx(seconds, rel=1e-2, abs=1e-4)
