"""Fair shares: for priorities by weight, for callers alike, whatever they have waiting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dispatch.policy.brown_out import DEPTHS
from app.dispatch.policy.fair_queue import MOST_LEADS, WEIGHTS, Entry, FairQueue, Priority
from tests.app.dispatch.policy.entries import entry


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


def test_many_callers_of_one_priority_take_no_more_of_the_worker_than_few() -> None:
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
    assert list(queue.work) == [0.0] * DEPTHS
    assert queue.callers == 0


class ByDefinition:
    """Start-time fair queueing of one priority as its authors define it, with nothing forgotten while
    anything waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.starts: dict[str, float] = {}
        self.waiting: dict[str, list[int]] = {}

    def add(self, caller: str, key: int) -> None:
        if not self.waiting.get(caller):
            self.starts[caller] = max(self.now, self.starts.get(caller, self.now))
        self.waiting.setdefault(caller, []).append(key)

    def turns(self) -> set[int]:
        """The keys that may be served next: of callers with the least start."""
        least = min(self.starts[caller] for caller, keys in self.waiting.items() if keys)
        return {keys[0] for caller, keys in self.waiting.items() if keys and self.starts[caller] == least}

    def take(self, caller: str, key: int, served_s: float | None) -> None:
        self.waiting[caller].remove(key)
        if served_s is not None:
            self.now = self.starts[caller]
            self.starts[caller] += served_s
        if not any(self.waiting.values()):
            self.starts.clear()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abcde"), st.integers(1, 9)),
        st.tuples(st.just("remove"), st.integers(0, 99), st.just(0)),
        st.just(("serve", 0, 0)),
    ),
    max_size=120,
)


@given(steps)
def test_what_is_forgotten_of_callers_changes_no_turn(steps: list[tuple[str, object, int]]) -> None:
    """Whoever comes, goes and comes back, the next turn is the definition's."""
    queue, definition = FairQueue(DEPTHS), ByDefinition()
    callers: dict[int, str] = {}
    for number, (what, who, seconds) in enumerate(steps):
        if what == "add":
            callers[number] = str(who)
            queue.add(entry(number, seconds=float(seconds), caller=str(who)))
            definition.add(str(who), number)
        elif what == "remove" and callers:
            key = list(callers)[int(str(who)) % len(callers)]
            queue.remove(key)
            definition.take(callers.pop(key), key, None)
        elif what == "serve" and (first := queue.first()) is not None:
            assert first.key in definition.turns()
            key = int(str(first.key))
            queue.serve(first, first.seconds[0])
            definition.take(callers.pop(key), key, first.seconds[0])


def test_callers_who_have_gone_are_forgotten() -> None:
    """Twenty thousand callers who come once each leave nothing behind."""
    queue = FairQueue(DEPTHS)
    for number in range(20_000):
        queue.add(entry(number, caller=f"caller {number}"))
        served(queue, 1)
    assert queue.remembered == 0


@pytest.mark.parametrize("leave", ["served", "withdrawn"])
def test_callers_who_have_gone_are_forgotten_while_others_wait(leave: str) -> None:
    """What is kept is bounded even where the queue never runs empty and virtual time stands still."""
    queue = queue_of(entry("waits", caller="always here"))
    for number in range(20_000):
        queue.add(entry(number, seconds=0.0 if leave == "withdrawn" else 1.0, caller=f"caller {number}"))
        if leave == "served":
            # Two wait at a time; whoever is served, one of them is left.
            served(queue, 1)
        else:
            queue.remove(number)
    assert queue.remembered <= MOST_LEADS + 2 * (3 * len(queue) + 64)


def test_a_lead_is_remembered_while_others_wait() -> None:
    """A caller who was served, went and comes back does not go before those who waited meanwhile."""
    queue = queue_of(entry("a1", caller="a"), entry("b1", caller="b"), entry("b2", caller="b"))
    assert [one.key for one in served(queue, 1)] == ["a1"]
    queue.add(entry("a2", caller="a"))
    assert [one.key for one in served(queue, 1)] == ["b1"]
