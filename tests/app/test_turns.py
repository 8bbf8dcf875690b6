"""Whose work goes next."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.turns import Turns


def taken(turns: Turns[int]) -> list[tuple[str, int]]:
    """All the work that can have a place now."""
    given = []
    while (next_one := turns.take()) is not None:
        given.append(next_one)
    return given


def waiting(places: int, *work: tuple[str, int]) -> Turns[int]:
    turns: Turns[int] = Turns(places)
    for caller, key in work:
        turns.add(caller, key)
    return turns


def test_one_caller_leaves_a_place_free() -> None:
    """Whoever comes while one caller's work runs finds a place at once."""
    turns = waiting(3, ("a", 1), ("a", 2), ("a", 3), ("a", 4))
    assert taken(turns) == [("a", 1), ("a", 2)]
    turns.add("b", 5)
    assert taken(turns) == [("b", 5)]
    assert repr(turns) == "<Turns: 0 free, 3 held, 2 waiting>"


def test_with_a_single_place_a_caller_may_have_it() -> None:
    """Nothing would ever run otherwise."""
    turns = waiting(1, ("a", 1), ("a", 2))
    assert taken(turns) == [("a", 1)]
    turns.give_back("a")
    assert taken(turns) == [("a", 2)]


def test_who_holds_fewer_places_goes_first() -> None:
    """A caller with nothing running goes before one that has been waiting longer."""
    turns = waiting(4, ("a", 1), ("a", 2))
    assert taken(turns) == [("a", 1), ("a", 2)]
    for caller, key in (("a", 3), ("a", 4), ("b", 5), ("b", 6), ("c", 7)):
        turns.add(caller, key)
    assert taken(turns) == [("b", 5), ("c", 7)]
    turns.give_back("a")
    assert taken(turns) == [("a", 3)]


def test_callers_are_served_in_turn() -> None:
    """With one place, three callers with two images each alternate."""
    turns = waiting(1, *((caller, key) for caller in "abc" for key in (1, 2)))
    order = []
    for _ in range(6):
        ((caller, _),) = taken(turns)
        order.append(caller)
        turns.give_back(caller)
    assert "".join(order) == "abcabc"


def test_withdrawn_work_gets_no_place() -> None:
    """What its caller no longer waits for is passed over, and its caller forgotten."""
    turns = waiting(1, ("a", 1), ("b", 2))
    turns.withdraw("a", 1)
    turns.withdraw("a", 1)
    turns.withdraw("nobody", 7)
    assert taken(turns) == [("b", 2)]
    turns.give_back("b")
    assert repr(turns) == "<Turns: 1 free, 0 held, 0 waiting>"


class Sharing(RuleBasedStateMachine):
    """Four places, callers that come and go."""

    PLACES = 4

    def __init__(self) -> None:
        super().__init__()
        self.turns: Turns[int] = Turns(self.PLACES)
        self.waiting: list[tuple[str, int]] = []
        self.running: list[tuple[str, int]] = []
        self.number = 0

    @rule(caller=st.sampled_from("abcdef"))
    def come(self, caller: str) -> None:
        self.number += 1
        self.turns.add(caller, self.number)
        self.waiting.append((caller, self.number))
        self.start()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def go_away(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(gone)
        self.turns.withdraw(*gone)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        ended = data.draw(st.sampled_from(self.running))
        self.running.remove(ended)
        self.turns.give_back(ended[0])
        self.start()

    def start(self) -> None:
        for given in taken(self.turns):
            self.waiting.remove(given)
            self.running.append(given)

    @invariant()
    def no_caller_has_all_places_and_none_is_left_empty(self) -> None:
        """Places are bounded; each caller leaves one; who waits with nothing running means all are taken."""
        callers = [caller for caller, _ in self.running]
        assert len(callers) <= self.PLACES
        assert all(callers.count(caller) < self.PLACES for caller in callers)
        if len(callers) < self.PLACES:
            assert all(callers.count(caller) == self.PLACES - 1 for caller, _ in self.waiting)


TestSharing = Sharing.TestCase
