"""Seconds of work at every depth."""

from hypothesis import given
from hypothesis import strategies as st

from app.dispatch.policy.totals import Totals

WHOLE = st.integers(1, 1000).map(float)  # so that sums are exact
ALIKE = WHOLE.map(lambda seconds: (seconds,) * 3)
LOWERED = st.lists(WHOLE, min_size=3, max_size=3).map(lambda seconds: tuple(sorted(seconds, reverse=True)))


@given(entries=st.lists(st.tuples(ALIKE | LOWERED, st.booleans())))
def test_the_sum_at_each_depth_is_that_of_the_entries(entries: list[tuple[tuple[float, ...], bool]]) -> None:
    """Whether or not they may be lowered, and when some have gone."""
    totals = Totals(3)
    for seconds, _ in entries:
        totals.add(seconds)
    for seconds, goes in entries:
        if goes:
            totals.remove(seconds)
    left = [seconds for seconds, goes in entries if not goes]
    assert list(totals) == [sum(seconds[depth] for seconds in left) for depth in range(3)]
    assert [totals[depth] for depth in range(3)] == list(totals)


def test_the_last_entry_leaves_exactly_nothing() -> None:
    """Of either kind: what floats would leave makes an idle worker look busy."""
    totals = Totals(2)
    entries = [(0.1, 0.1), (0.2, 0.2), (0.7, 0.1), (0.2, 0.3 - 0.1)]
    for seconds in entries:
        totals.add(seconds)
    for seconds in entries:
        totals.remove(seconds)
    assert list(totals) == [0.0, 0.0]
