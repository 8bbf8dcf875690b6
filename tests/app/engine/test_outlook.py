"""A front end's view of an engine's load."""

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.brown_out import DEPTHS
from app.engine.cost import CostModel, Measured, Work
from app.engine.fair_queue import Entry
from app.engine.load import load_of
from app.engine.messages import Load, Priority, Terms
from app.engine.outlook import Outlook
from app.engine.scheduler import Limits, Refusal, Scheduler

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
    outlook.sent(1, "light", "normal", 1.0)
    assert outlook.wait_s("any", "normal", 1.0, 0.0) == 0
    assert outlook.refuses("any", "normal", 1.0, 0.001, math.inf, 0.0) is None


def test_each_caller_waits_for_what_is_before_that_caller() -> None:
    """By priority; those with much waiting have their own."""
    outlook = told()
    assert outlook.wait_s("light", "normal", 1.0, 100.0) == 2.0
    assert outlook.wait_s("light", "batch", 1.0, 100.0) == 8.0
    assert outlook.wait_s("heavy", "normal", 1.0, 100.0) == 6.0
    assert outlook.wait_s("heavy", "high", 1.0, 100.0) == 1.0
    assert outlook.wait_s("heavy", "batch", 1.0, 100.0) == 8.0


def test_the_engine_goes_on_working_while_it_says_nothing() -> None:
    """What was to be waited for becomes less with time, and no less than nothing."""
    outlook = told()
    assert outlook.wait_s("light", "normal", 1.0, 101.5) == 0.5
    assert outlook.wait_s("light", "normal", 1.0, 200.0) == 0


def test_what_is_under_way_counts_until_the_engine_has_counted_it() -> None:
    """Images that are decoded, and those sent after the last one that the engine had seen."""
    outlook = told()
    outlook.decoding("light", "normal", 0.5)
    outlook.sent(8, "light", "normal", 1.0)
    outlook.sent(9, "light", "normal", 0.5)
    assert outlook.wait_s("light", "normal", 1.0, 100.0) == 2.0 + 2.0 * 0.25
    outlook.decoded("light", "normal", 0.5)
    outlook.tell(Load(LOAD.wait_s, LOAD.callers, LOAD.image_s, seen=8), 100.0)
    assert outlook.wait_s("light", "normal", 1.0, 100.0) == 2.0 + 0.5 * 0.25


def test_what_others_have_under_way_counts_by_fair_shares() -> None:
    """A caller's thousand photographs, most of which wait for a decoder, delay that caller, and others by one
    photograph. Of another priority it is as many as its weight gives it meanwhile."""
    outlook = Outlook()
    outlook.tell(Load({"normal": 0.0, "high": 0.0}, (), 0.25, seen=0), 100.0)
    for number in range(500):
        outlook.decoding("heavy", "normal", 0.5)
        outlook.sent(number + 1, "heavy", "normal", 0.5)
    assert outlook.wait_s("heavy", "normal", 0.5, 100.0) == pytest.approx(500 * 0.25)
    assert outlook.wait_s("light", "normal", 0.5, 100.0) == 0.5 * 0.25
    assert outlook.wait_s("heavy", "high", 0.5, 100.0) == 0.5 * 0.25 * 4 / 16
    assert outlook.refuses("light", "normal", 0.5, 30.0, 10.0, 100.0) is None
    assert outlook.refuses("heavy", "normal", 0.5, 30.0, 10.0, 100.0) is not None
    outlook.decoding("light", "normal", 1.0)
    assert outlook.wait_s("light", "normal", 0.5, 100.0) == pytest.approx(1.0 * 0.25 + 1.5 * 0.25)


def test_an_image_that_is_sent_twice_is_one_image() -> None:
    """As after an engine that was not ready for it."""
    outlook = told()
    outlook.sent(8, "light", "normal", 1.0)
    outlook.sent(8, "light", "normal", 1.0)
    assert outlook.wait_s("light", "normal", 1.0, 100.0) == 2.0 + 0.25
    outlook.tell(Load(LOAD.wait_s, LOAD.callers, LOAD.image_s, seen=8), 100.0)
    assert outlook.wait_s("light", "normal", 1.0, 100.0) == 2.0


@given(st.lists(st.floats(0.01, 2), min_size=1), st.randoms())
def test_an_idle_engine_decides_for_itself_once_all_is_decoded(
    shares: list[float], draw: random.Random
) -> None:
    """However many images were decoded at once, and in whatever order they were done: rounding leaves
    nothing behind."""
    outlook = Outlook()
    outlook.tell(msgspec.structs.replace(LOAD, idle=True, terms=Terms(overhead_s=0.5)), 100.0)
    for share in shares:
        outlook.decoding("light", "normal", share)
    assert outlook.refuses("any", "normal", 1.0, 0.001, math.inf, 100.0) is not None
    draw.shuffle(shares)
    for share in shares:
        outlook.decoded("light", "normal", share)
    assert outlook.refuses("any", "normal", 1.0, 0.001, math.inf, 100.0) is None


def test_an_image_without_a_chance_is_refused_until_it_has_one() -> None:
    """By its deadline, or by the server's limit."""
    outlook = told()
    assert outlook.refuses("heavy", "normal", 1.0, 6.5, math.inf, 100.0) is None
    assert outlook.refuses("heavy", "normal", 1.0, 3.0, math.inf, 100.0) == pytest.approx(6.0 - 3.0)
    assert outlook.refuses("heavy", "normal", 1.0, 30.0, 5.0, 100.0) == pytest.approx(6.0 - 5.0)


def test_what_an_image_takes_itself_is_no_time_to_wait() -> None:
    """Its own batch, with as many behind it as its deadline leaves room for, and the doubt about it all."""
    outlook = told()
    terms = Terms(overhead_s=0.5, image_s=0.25, compute_s=1.5, batch_compute=2.0, caution=2.0)
    outlook.tell(Load(LOAD.wait_s, (), LOAD.image_s, seen=7, terms=terms), 100.0)
    # 2.0 s are waited for, and half a second more for the overhead of one batch of 2 s, a quarter of the 8 s.
    # It takes 1.5 s itself, with its batch's overhead, and leaves 1.0 s to another image.
    missing = outlook.refuses("light", "normal", 0.5, 8.0, math.inf, 100.0)
    assert missing == pytest.approx(2.5 - (8.0 / 2.0 - 1.5 - 1.0))


def test_where_even_an_idle_engine_would_be_late_there_is_no_time_to_wait_for() -> None:
    """An idle one is asked all the same, for only computing puts a prediction right."""
    outlook = Outlook()
    terms = Terms(overhead_s=1.0, compute_s=1.0, alone_s=2.0)
    outlook.tell(Load({"normal": 1.0}, (), 0.5, seen=0, terms=terms), 0.0)
    assert outlook.refuses("any", "normal", 1.0, 1.9, math.inf, 0.0) == math.inf
    outlook.tell(Load({"normal": 0.0}, (), 0.5, seen=0, idle=True, terms=terms), 1.0)
    assert outlook.refuses("any", "normal", 1.0, 1.9, math.inf, 1.0) is None
    outlook.decoding("light", "normal", 1.0)
    assert outlook.refuses("any", "normal", 1.0, 1.9, math.inf, 1.0) == math.inf, "one at a time"


COSTS = CostModel.learned(
    [Measured(threads, Work(n, n), 0.01 + n * 0.1 / threads) for threads in (1, 2) for n in (1, 4)]
)
Image = tuple[str, Priority, float, float, float]  # caller, priority, share, deadline_s, wait_limit_s
IMAGES = st.tuples(
    st.sampled_from(("a", "b")),
    st.sampled_from(("high", "normal", "batch")),
    st.floats(0.05, 1.0),
    st.floats(0.1, 5.0),
    st.sampled_from((0.5, math.inf)),
)


def entry(key: object, image: Image, now: float) -> Entry:
    caller, priority, share, deadline_s, wait_limit_s = image
    return Entry(
        key,
        (max(1, round(200 * share)),) * DEPTHS,
        (COSTS.image_s(share, 1),) * DEPTHS,
        (COSTS.predict(Work(1, share), 2),) * DEPTHS,
        now,
        now + deadline_s,
        wait_limit_s,
        caller,
        priority,
    )


def both(
    waiting: list[Image], asked: Image, overhead_s: float, caution: float, now: float, *, running: bool
) -> tuple[float | None, Refusal | None]:
    """What a front end says of an image, and then the engine: with these images waiting since the start, or
    some of them running."""
    scheduler = Scheduler(Limits(4096, 1024, 2, 2), overhead_s, caution)
    for number, image in enumerate(waiting):
        scheduler.submit(entry(number, image, 0.0), 0.0)
        while running and scheduler.next_batch(0.0):
            pass
    scheduler.expire(now)
    outlook = Outlook()
    outlook.tell(load_of(scheduler, COSTS, asked[2], 200, now), now)
    missing = outlook.refuses(*asked, now)
    return missing, scheduler.submit(entry("asked", asked, now), now)


DUST = 1e-9  # what floats that are added up in another order may differ by
STATES = {
    "overhead_s": st.sampled_from((0.0, 0.01, 0.5)),
    "caution": st.sampled_from((1.0, 1.3)),
    "now": st.floats(0.0, 0.5),
    "running": st.booleans(),
}


@given(waiting=st.lists(IMAGES, max_size=30), asked=IMAGES, **STATES)
def test_nothing_is_refused_that_the_engine_would_accept(
    waiting: list[Image], asked: Image, overhead_s: float, caution: float, now: float, *, running: bool
) -> None:
    """Whatever waits or runs, of whomever."""
    missing, refusal = both(waiting, asked, overhead_s, caution, now, running=running)
    assert missing is None or missing < DUST or refusal is not None


@given(number=st.integers(0, 60), image=IMAGES, **STATES)
def test_nothing_is_let_through_that_the_engine_would_refuse(
    number: int, image: Image, overhead_s: float, caution: float, now: float, *, running: bool
) -> None:
    """Of images alike from one caller, where something is waited for: they would be decoded in vain."""
    missing, refusal = both([image] * number, image, overhead_s, caution, now, running=running)
    if refusal is not None and refusal.retry_after_s is not None and refusal.retry_after_s > DUST:
        assert missing == pytest.approx(refusal.retry_after_s)


def test_an_engine_that_is_gone_has_said_nothing() -> None:
    """Its successor begins with an empty queue."""
    outlook = told()
    outlook.sent(8, "light", "normal", 1.0)
    outlook.lost()
    outlook.tell(Load({"normal": 0.0}, (), 0.25, seen=0), 101.0)
    assert outlook.wait_s("heavy", "normal", 1.0, 101.0) == 0
