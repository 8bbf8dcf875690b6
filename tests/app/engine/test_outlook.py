"""A front end's view of an engine's load."""

import pytest

from app.engine.messages import Load
from app.engine.outlook import Outlook

LOAD = Load(
    wait_s={"high": 0.5, "normal": 2.0, "batch": 8.0},
    callers=(("heavy", "normal", 6.0), ("heavy", "high", 1.0)),
    image_s=0.25,
    seen=7,
)


def told(now: float = 100.0) -> Outlook:
    outlook = Outlook()
    outlook.tell(LOAD, now)
    return outlook


def test_where_nothing_is_known_nothing_is_refused() -> None:
    """The engine decides."""
    outlook = Outlook()
    outlook.sent(1, 1.0)
    assert outlook.wait_s("any", "normal", 0.0) == 0
    assert outlook.refuses("any", "normal", 0.001, 0.0) is None


def test_each_caller_waits_for_what_is_before_that_caller() -> None:
    """By priority; those with much waiting have their own."""
    outlook = told()
    assert outlook.wait_s("light", "normal", 100.0) == 2.0
    assert outlook.wait_s("light", "batch", 100.0) == 8.0
    assert outlook.wait_s("heavy", "normal", 100.0) == 6.0
    assert outlook.wait_s("heavy", "high", 100.0) == 1.0
    assert outlook.wait_s("heavy", "batch", 100.0) == 8.0


def test_the_engine_goes_on_working_while_it_says_nothing() -> None:
    """What was to be waited for becomes less with time, and no less than nothing."""
    outlook = told()
    assert outlook.wait_s("light", "normal", 101.5) == 0.5
    assert outlook.wait_s("light", "normal", 200.0) == 0


def test_what_is_under_way_counts_until_the_engine_has_counted_it() -> None:
    """Images that are decoded, and those sent after the last one that the engine had seen."""
    outlook = told()
    outlook.decoding(0.5)
    outlook.sent(8, 1.0)
    outlook.sent(9, 0.5)
    assert outlook.wait_s("light", "normal", 100.0) == 2.0 + 2.0 * 0.25
    outlook.decoding(-0.5)
    outlook.tell(Load(LOAD.wait_s, LOAD.callers, LOAD.image_s, seen=8), 100.0)
    assert outlook.wait_s("light", "normal", 100.0) == 2.0 + 0.5 * 0.25


def test_an_image_without_a_chance_is_refused_until_it_has_one() -> None:
    """A tenth of the prediction is left to doubt."""
    outlook = told()
    assert outlook.refuses("heavy", "normal", 5.5, 100.0) is None
    assert outlook.refuses("heavy", "normal", 3.0, 100.0) == pytest.approx(0.9 * 6.0 - 3.0)


def test_an_engine_that_is_gone_has_said_nothing() -> None:
    """Its successor begins with an empty queue."""
    outlook = told()
    outlook.sent(8, 1.0)
    outlook.lost()
    outlook.tell(Load({"normal": 0.0}, (), 0.25, seen=0), 101.0)
    assert outlook.wait_s("heavy", "normal", 101.0) == 0
