"""Which engine gets the next image."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.messages import Load
from app.engine.outlook import Outlook
from app.engine.pool import Standing, choose, done_in_s

SHARES = st.floats(0.05, 1.5)
SECONDS = st.floats(0.0, 10.0)
Engine = tuple[Outlook, Standing]


def engine(wait_s: float | None, image_s: float = 0.1, *ours: float) -> Engine:
    """An engine that told so at time 0 (None: has told nothing), and has been sent these shares since."""
    outlook, standing = Outlook(), Standing()
    if wait_s is not None:
        outlook.tell(Load(wait_s={"normal": wait_s}, callers=(), image_s=image_s, seen=0), 0.0)
    for image, share in enumerate(ours, 1):
        send((outlook, standing), image, share)
    return outlook, standing


def send(to: Engine, image: int, share: float) -> None:
    outlook, standing = to
    outlook.sent(image, "somebody", "normal", share)
    standing.sent(image, share)


def done(one: Engine, share: float, now: float = 0.0) -> float:
    return done_in_s(*one, share, "somebody", "normal", now)


def chosen(engines: list[Engine], share: float = 1.0, now: float = 0.0) -> int:
    return choose(engines, share, "somebody", "normal", now)


def test_what_is_told_and_what_was_sent_since_and_the_image_add_up() -> None:
    """Worked out by hand: 0.7 s told, of which 0.2 s have passed, and 0.1 s for each of 0.5 + 0.25 + 1."""
    one = engine(0.7, 0.1, 0.5, 0.25)
    assert done(one, 1.0, now=0.2) == pytest.approx(0.5 + 0.175)
    assert one[1].work == 0.75
    assert repr(one[1]) == "<Standing 2 images, 0.75 unpruned, the last was 2>"


def test_an_engine_that_has_told_nothing_comes_after_one_that_has() -> None:
    """It may just have come up; and of two of them the one with less work of ours is taken."""
    assert chosen([engine(None), engine(2.0)]) == 1
    assert chosen([engine(None, 0.1, 0.3), engine(None, 0.1, 0.1, 0.1)]) == 1


def test_the_faster_engine_is_worth_a_queue() -> None:
    """An engine ten times as fast is taken until its queue makes up for that."""
    fast, slow = engine(0.0, 0.01), engine(0.0, 0.1)
    places = []
    for image in range(1, 12):
        place = chosen([fast, slow])
        send((fast, slow)[place], image, 1.0)
        places.append(place)
    assert places[:9] == [0] * 9
    assert 1 in places[9:]


def test_among_equals_engines_take_turns() -> None:
    """A lone client's images go to each engine in turn, not always to the first."""
    engines = [engine(None), engine(None), engine(None)]
    places = []
    for image in range(1, 7):
        place = chosen(engines)
        engines[place][1].sent(image, 1.0)
        engines[place][1].ended(image)
        places.append(place)
    assert places == [0, 1, 2, 0, 1, 2]


def test_an_image_ends_once() -> None:
    """Twice over changes nothing, nor does one that was never there."""
    standing = Standing()
    standing.sent(3, 0.5)
    standing.sent(4, 0.25)
    for image in (3, 3, 9):
        standing.ended(image)
    assert standing.work == 0.25
    standing.lost()
    assert standing.work == 0
    assert standing.last == 4


def test_without_an_engine_there_is_nothing_to_choose() -> None:
    with pytest.raises(ValueError, match="no engine"):
        chosen([])


@given(
    st.lists(st.tuples(st.none() | SECONDS, st.floats(0.001, 1.0), st.lists(SHARES, max_size=4)), min_size=1),
    SHARES,
)
def test_none_would_have_it_done_earlier(
    told: list[tuple[float | None, float, list[float]]], share: float
) -> None:
    """The engine chosen is one of those with the earliest end."""
    engines = [engine(wait_s, image_s, *ours) for wait_s, image_s, ours in told]
    assert done(engines[chosen(engines, share)], share) == min(done(one, share) for one in engines)


@given(st.lists(st.floats(0.2, 1.0), min_size=60, max_size=60), st.sampled_from([1.0, 2.0, 4.0]))
def test_engines_end_together_whatever_their_speeds(shares: list[float], times_faster: float) -> None:
    """Images that come at once end on all engines within one image of each other, though some engines are
    faster and nothing is told meanwhile."""
    seconds = [0.1, 0.1 / times_faster, 0.1 / times_faster]
    engines = [engine(0.0, image_s) for image_s in seconds]
    for image, share in enumerate(shares, 1):
        send(engines[chosen(engines, share)], image, share)
    ends = [done(one, 0.0) for one in engines]
    assert max(ends) - min(ends) <= max(seconds) + 1e-9
