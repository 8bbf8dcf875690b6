"""Fair shares: for priorities by weight, for callers alike, whatever they have waiting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.brown_out import DEPTHS
from app.engine.fair_queue import WEIGHTS, Entry, FairQueue, Priority
from tests.app.engine.entries import entry


def queue_of(*entries: Entry) -> FairQueue:
    queue = FairQueue(DEPTHS)
    for one in entries:
        queue.add(one)
    return queue


def served(queue: FairQueue, number: int = 10_000) -> list[Entry]:
    """So many entries in the order of their turns."""
    order: list[Entry] = []
    while len(order) < number and (first := queue.first()) is not None:
        queue.serve(first, first.seconds[0])
        order.append(first)
    return order


def test_callers_are_served_by_cost_not_by_number() -> None:
    """A caller whose images cost three times as much gets a third as many."""
    queue = queue_of(
        *(entry(("dear", number), seconds=3.0, caller="dear") for number in range(100)),
        *(entry(("cheap", number), seconds=1.0, caller="cheap") for number in range(100)),
    )
    first = [one.caller for one in served(queue, 80)]
    assert (first.count("dear"), first.count("cheap")) == (20, 60)


def test_many_callers_of_one_priority_take_no_more_of_the_engine_than_few() -> None:
    """Priorities share first, callers within them."""
    queue = queue_of(
        *(entry((caller, number), caller=f"n{caller}") for caller in range(9) for number in range(20)),
        *(entry(("high", number), caller="h", priority="high") for number in range(20)),
    )
    first = [one.priority for one in served(queue, 20)]
    assert first.count("high") == 16


def test_a_caller_who_was_away_saves_up_nothing() -> None:
    """Whoever comes back starts now: no service is owed for the time without work."""
    queue = queue_of(*(entry(("a", number), caller="a") for number in range(30)))
    assert [one.caller for one in served(queue, 20)] == ["a"] * 20
    for number in range(10):
        queue.add(entry(("b", number), caller="b"))
    assert [one.caller for one in served(queue, 6)].count("b") == 3


def test_a_caller_who_comes_and_goes_gains_nothing() -> None:
    """Taking all back and coming again right away keeps the place in the order."""
    queue = queue_of(*(entry(("a", number), caller="a") for number in range(30)))
    counts = {"a": 0, "b": 0}
    for number in range(20):
        for again in range(3):  # would be first each time if it counted as new
            queue.add(entry(("b", number, again), caller="b"))
            queue.remove(("b", number, again))
        queue.add(entry(("b", number), caller="b"))
        (one,) = served(queue, 1)
        counts[one.caller] += 1
        queue.remove(("b", number))
    assert counts["b"] <= counts["a"] + 1


def test_only_the_first_may_be_served() -> None:
    """Any other would spoil the shares."""
    queue = queue_of(entry("a"), entry("b"))
    with pytest.raises(ValueError, match="it is not the turn of 'b'"):
        queue.serve(queue.get("b") or entry("c"), 1.0)
    assert len(queue) == 2


def test_a_key_that_waits_cannot_be_added_again() -> None:
    """The same key twice is the caller's mistake, and loud."""
    with pytest.raises(ValueError, match="'a' is already waiting"):
        queue_of(entry("a"), entry("a", caller="b"))


def test_the_heaviest_are_named_by_priority() -> None:
    """Of each priority those with the most seconds."""
    queue = queue_of(
        entry("a", seconds=1.0, caller="a"),
        entry("b", seconds=5.0, caller="b"),
        entry("c", seconds=3.0, caller="c"),
        entry("d", seconds=0.1, caller="a", priority="high"),
    )
    assert queue.heaviest(2) == [("a", "high"), ("b", "normal"), ("c", "normal")]


def test_the_work_before_an_image_is_what_shares_let_through() -> None:
    """Its caller's own, as much of each other caller's, and of other priorities by their weights."""
    queue = queue_of(
        entry("a", seconds=2.0, caller="a"),
        entry("b", seconds=10.0, caller="b"),
        entry("c", seconds=1.0, caller="c"),
    )
    assert queue.work_before("a", "normal", 1.0, 0) == 2 + 3 + 1
    assert queue.work_before("new", "normal", 1.0, 0) == 1 + 1 + 1
    assert queue.work_before("new", "high", 1.0, 0) == pytest.approx(0 + 4 / 16)
    assert queue.work_before("a", "batch", 1.0, 0) == pytest.approx(0 + 4.0)
    queue.add(entry("h", seconds=3.0, caller="a", priority="high"))
    assert queue.work_before("a", "normal", 1.0, 0) == 6 + 3


callers = st.sampled_from("abc")
priorities: st.SearchStrategy[Priority] = st.sampled_from(tuple(WEIGHTS))


@given(
    st.lists(st.tuples(callers, priorities, st.integers(1, 9)), max_size=60),
    st.lists(st.tuples(st.booleans(), st.integers(0, 59)), max_size=60),
)
def test_every_entry_leaves_once_and_the_totals_are_what_waits(
    added: list[tuple[str, Priority, int]], then: list[tuple[bool, int]]
) -> None:
    """Whoever comes, is served or withdrawn."""
    queue = queue_of(
        *(
            entry(number, seconds=seconds / 8, falls=0.05, caller=caller, priority=priority)
            for number, (caller, priority, seconds) in enumerate(added)
        )
    )
    waiting = {one.key: one for one in queue}
    assert len(waiting) == len(added)
    for serve, key in then:
        if serve:
            first = queue.first()
            assert (first is None) == (not waiting)
            if first is not None:
                queue.serve(first, first.seconds[0])
                del waiting[first.key]
        else:
            removed = queue.remove(key)
            assert removed is waiting.pop(key, None)
        assert {one.key for one in queue} == set(waiting)
        for depth in (0, DEPTHS - 1):
            total = sum(one.seconds[depth] for one in waiting.values())
            assert queue.work[depth] == pytest.approx(total, abs=1e-9)
        for caller in "abc":
            assert queue.held_by(caller) == sum(one.caller == caller for one in waiting.values())
    rest = served(queue)
    assert {one.key for one in rest} == set(waiting)
    assert queue.work == [0.0] * DEPTHS
    assert queue.callers == 0
