"""Many alike events are told seldom."""

from hypothesis import given
from hypothesis import strategies as st

from app.telemetry.rarely import Rarely


@given(st.lists(st.floats(0, 100), max_size=100))
def test_every_event_is_told_or_counted(pauses: list[float]) -> None:
    """The first is told, no two within the time, and the counts are of those between."""
    rarely, now, last, left_out = Rarely(60.0), 0.0, None, 0
    for pause in pauses:
        now += pause
        due = rarely.due(now)
        if due is None:
            left_out += 1
            assert last is not None
            assert now < last + 60.0
        else:
            assert due == left_out
            assert last is None or now >= last + 60.0
            last, left_out = now, 0
