"""A front end's view of the dispatcher's load."""

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dispatch.policy.admission import Refusal
from app.dispatch.policy.batches import Rates
from app.dispatch.policy.brown_out import DEPTHS
from app.dispatch.policy.cost import CostModel
from app.dispatch.policy.fair_queue import Entry
from app.dispatch.policy.load import Image, load_of
from app.dispatch.policy.load_page import LoadPage
from app.dispatch.policy.predictions import Predictions
from app.messages.capacity import Measured, Work
from app.messages.to_front_end import Load, Terms
from app.priority import Priority
from tests.app.dispatch.policy.entries import Sizes

QUARTER = {"": Terms(compute_s=0.25)}  # what an unpruned image takes, in a batch and alone
LOAD = Load(
    work_s={"high": 0.5, "normal": 2.0, "batch": 8.0},
    callers=(("heavy", "normal", 6.0), ("heavy", "high", 1.0)),
    free_in_s=[0.0],
    seen=7,
    terms=QUARTER,
)


def wait_s(page: LoadPage, caller: str, priority: Priority, share: float, now: float) -> float:
    """How long an image is predicted to wait: what is missing for one that may not wait at all."""
    refusal = page.refusal(caller, priority, share, 1e9, 1e-9, now)
    return 0.0 if refusal is None else round(missing_s(refusal), 6)


def missing_s(refusal: Refusal | None) -> float:
    """The seconds until the image would have been admitted."""
    assert refusal is not None
    assert refusal.retry_after_s is not None
    return refusal.retry_after_s


def told(now: float = 100.0) -> LoadPage:
    page = LoadPage()
    page.tell(LOAD, now)
    return page


def test_where_nothing_is_known_nothing_is_refused() -> None:
    """The dispatcher decides."""
    page = LoadPage()
    page.sent(1, "light", "normal", 1.0)
    assert wait_s(page, "any", "normal", 1.0, 0.0) == 0
    assert page.refusal("any", "normal", 1.0, 0.001, math.inf, 0.0) is None


def test_each_caller_waits_for_what_is_before_that_caller() -> None:
    """By priority; those with much waiting have their own."""
    page = told()
    assert wait_s(page, "light", "normal", 1.0, 100.0) == 2.0
    assert wait_s(page, "light", "batch", 1.0, 100.0) == 8.0
    assert wait_s(page, "heavy", "normal", 1.0, 100.0) == 6.0
    assert wait_s(page, "heavy", "high", 1.0, 100.0) == 1.0
    assert wait_s(page, "heavy", "batch", 1.0, 100.0) == 8.0


def test_the_workers_go_on_working_while_it_says_nothing() -> None:
    """What was to be waited for becomes less with time, and no less than nothing."""
    page = told()
    assert wait_s(page, "light", "normal", 1.0, 101.5) == 0.5
    assert wait_s(page, "light", "normal", 1.0, 200.0) == 0


def test_what_is_under_way_counts_until_the_dispatcher_has_counted_it() -> None:
    """Images that are decoded, and those sent after the last one that the dispatcher had seen."""
    page = told()
    page.decoding("light", "normal", 0.5)
    page.sent(8, "light", "normal", 1.0)
    page.sent(9, "light", "normal", 0.5)
    assert wait_s(page, "light", "normal", 1.0, 100.0) == 2.0 + 2.0 * 0.25
    page.decoded("light", "normal", 0.5)
    page.tell(msgspec.structs.replace(LOAD, seen=8), 100.0)
    assert wait_s(page, "light", "normal", 1.0, 100.0) == 2.0 + 0.5 * 0.25


def test_what_others_have_under_way_counts_by_fair_shares() -> None:
    """A caller's thousand photographs, most of which wait for a decoder, delay that caller, and others by one
    photograph. Of another priority it is as many as its weight gives it meanwhile."""
    page = LoadPage()
    page.tell(Load({"normal": 0.0, "high": 0.0}, (), [0.0], seen=0, terms=QUARTER), 100.0)
    for number in range(500):
        page.decoding("heavy", "normal", 0.5)
        page.sent(number + 1, "heavy", "normal", 0.5)
    assert wait_s(page, "heavy", "normal", 0.5, 100.0) == pytest.approx(500 * 0.25)
    assert wait_s(page, "light", "normal", 0.5, 100.0) == 0.5 * 0.25
    assert wait_s(page, "heavy", "high", 0.5, 100.0) == 0.5 * 0.25 * 4 / 16
    assert page.refusal("light", "normal", 0.5, 30.0, 10.0, 100.0) is None
    assert page.refusal("heavy", "normal", 0.5, 30.0, 10.0, 100.0) is not None
    page.decoding("light", "normal", 1.0)
    assert wait_s(page, "light", "normal", 0.5, 100.0) == pytest.approx(1.0 * 0.25 + 1.5 * 0.25)


def test_an_image_that_is_sent_twice_is_one_image() -> None:
    """As after a worker that was not ready for it."""
    page = told()
    page.sent(8, "light", "normal", 1.0)
    page.sent(8, "light", "normal", 1.0)
    assert wait_s(page, "light", "normal", 1.0, 100.0) == 2.0 + 0.25
    page.tell(msgspec.structs.replace(LOAD, seen=8), 100.0)
    assert wait_s(page, "light", "normal", 1.0, 100.0) == 2.0


@given(st.lists(st.floats(0.01, 2), min_size=1), st.randoms())
def test_an_idle_dispatcher_decides_for_itself_once_all_is_decoded(
    shares: list[float], draw: random.Random
) -> None:
    """However many images were decoded at once, and in whatever order they were done: rounding leaves
    nothing behind."""
    page = LoadPage()
    page.tell(msgspec.structs.replace(LOAD, idle=True, terms={"": Terms(overhead_s=0.5)}), 100.0)
    for share in shares:
        page.decoding("light", "normal", share)
    assert page.refusal("any", "normal", 1.0, 0.001, math.inf, 100.0) is not None
    draw.shuffle(shares)
    for share in shares:
        page.decoded("light", "normal", share)
    assert page.refusal("any", "normal", 1.0, 0.001, math.inf, 100.0) is None


def test_an_image_without_a_chance_is_refused_until_it_has_one() -> None:
    """By its deadline, of which it takes a quarter of a second itself, or by the server's limit."""
    page = told()
    assert page.refusal("heavy", "normal", 1.0, 6.5, math.inf, 100.0) is None
    assert missing_s(page.refusal("heavy", "normal", 1.0, 3.0, math.inf, 100.0)) == pytest.approx(6.0 - 2.75)
    assert missing_s(page.refusal("heavy", "normal", 1.0, 30.0, 5.0, 100.0)) == pytest.approx(6.0 - 5.0)


def test_what_an_image_takes_itself_is_no_time_to_wait() -> None:
    """Its own batch, with as many behind it as its deadline leaves room for, and the doubt about it all."""
    page = told()
    terms = Terms(
        overhead_s=0.5, image_s=0.25, compute_s=1.5, batch_tokens=200, image_tokens=100, caution=2.0
    )
    page.tell(Load(LOAD.work_s, (), [0.0], seen=7, terms={"": terms}), 100.0)
    # 2.0 s are waited for, and half a second more for the overhead of one batch of 2 s, a quarter of the 8 s.
    # It takes 1.5 s itself, with its batch's overhead, and leaves 1.0 s to another image.
    missing = page.refusal("light", "normal", 0.5, 8.0, math.inf, 100.0)
    assert missing_s(missing) == pytest.approx(2.5 - (8.0 / 2.0 - 1.5 - 1.0))


def test_where_even_idle_workers_would_be_late_there_is_no_time_to_wait_for() -> None:
    """An idle one is asked all the same, for only computing puts a prediction right."""
    page = LoadPage()
    terms = Terms(overhead_s=1.0, compute_s=1.0, alone_s=2.0)
    hopeless = Refusal("deadline-unmeetable", None)
    page.tell(Load({"normal": 1.0}, (), [0.0], seen=0, terms={"": terms}), 0.0)
    assert page.refusal("any", "normal", 1.0, 1.9, math.inf, 0.0) == hopeless
    page.tell(Load({"normal": 0.0}, (), [0.0], seen=0, idle=True, terms={"": terms}), 1.0)
    assert page.refusal("any", "normal", 1.0, 1.9, math.inf, 1.0) is None
    page.decoding("light", "normal", 1.0)
    assert page.refusal("any", "normal", 1.0, 1.9, math.inf, 1.0) == hopeless, "one at a time"


MEASURED = tuple(
    Measured(threads, Work(n, n), 0.01 + n * 0.1 / threads) for threads in (1, 2) for n in (1, 4)
)
COSTS = CostModel.learned(MEASURED)
Asked = tuple[str, Priority, float, float, float]  # caller, priority, share, deadline_s, wait_limit_s
IMAGES = st.tuples(
    st.sampled_from(("a", "b")),
    st.sampled_from(("high", "normal", "batch")),
    st.floats(0.05, 1.0),
    st.floats(0.1, 5.0),
    st.sampled_from((0.5, math.inf)),
)


def entry(key: object, image: Asked, now: float) -> Entry:
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
    waiting: list[Asked], asked: Asked, overhead_s: float, caution: float, now: float, *, running: bool
) -> tuple[Refusal | None, Refusal | None]:
    """What a front end says of an image, and then the dispatcher: with these images waiting since the start,
    or some of them running."""
    sizes = Sizes(4096, 1024, 2, 2)
    scheduler = sizes.scheduler()
    predictions = Predictions(scheduler)
    predictions.join(1, sizes.worker, {"": MEASURED})
    scheduler.workers[1].rates[""] = Rates(overhead_s)
    scheduler.caution = caution
    scheduler.refresh()
    for number, image in enumerate(waiting):
        scheduler.submit(entry(number, image, 0.0), 0.0)
        while running and scheduler.next_batch(0.0):
            pass
    scheduler.expire(now)
    page = LoadPage()
    page.tell(load_of(scheduler, predictions, {"": Image(asked[2], 200)}, now), now)
    early = page.refusal(*asked, now)
    return early, scheduler.submit(entry("asked", asked, now), now)


DUST = 1e-9  # what floats that are added up in another order may differ by
STATES = {
    "overhead_s": st.sampled_from((0.0, 0.01, 0.5)),
    "caution": st.sampled_from((1.0, 1.3)),
    "now": st.floats(0.0, 0.5),
    "running": st.booleans(),
}


@given(waiting=st.lists(IMAGES, max_size=30), asked=IMAGES, **STATES)
def test_nothing_is_refused_that_the_dispatcher_would_accept(
    waiting: list[Asked], asked: Asked, overhead_s: float, caution: float, now: float, *, running: bool
) -> None:
    """Whatever waits or runs, of whomever."""
    early, refusal = both(waiting, asked, overhead_s, caution, now, running=running)
    is_dust = early is not None and early.retry_after_s is not None and early.retry_after_s < DUST
    assert early is None or is_dust or refusal is not None


@given(number=st.integers(0, 60), image=IMAGES, **STATES)
def test_nothing_is_let_through_that_the_dispatcher_would_refuse(
    number: int, image: Asked, overhead_s: float, caution: float, now: float, *, running: bool
) -> None:
    """Of images alike from one caller, where something is waited for: they would be decoded in vain."""
    early, refusal = both([image] * number, image, overhead_s, caution, now, running=running)
    if refusal is not None and refusal.retry_after_s is not None and refusal.retry_after_s > DUST:
        assert early is not None
        assert early.reason == refusal.reason
        assert early.retry_after_s == pytest.approx(refusal.retry_after_s)


def test_a_dispatcher_that_is_gone_has_said_nothing() -> None:
    """Its successor begins with an empty queue."""
    page = told()
    page.sent(8, "light", "normal", 1.0)
    page.lost()
    page.tell(Load({"normal": 0.0}, (), [0.0], seen=0), 101.0)
    assert wait_s(page, "heavy", "normal", 1.0, 101.0) == 0


def test_every_model_has_terms_of_its_own() -> None:
    """An image is reckoned by what its model takes; what is in flight for another by what that one costs, in
    images of the default model."""
    terms = {"": Terms(compute_s=0.25, alone_s=0.5), "large": Terms(compute_s=1.0, alone_s=2.0)}
    page = LoadPage()
    page.tell(Load({"normal": 0.0}, (), [0.0], seen=0, terms=terms), 100.0)
    page.decoding("light", "normal", 4.0)  # an unpruned image of the large one

    def would_be_refused(deadline_s: float, model: str, weight: float) -> bool:
        asked = page.refusal("light", "normal", 1.0, deadline_s, math.inf, 100.0, model, weight)
        return asked is not None

    assert [would_be_refused(deadline_s, "", 1.0) for deadline_s in (1.2, 1.3)] == [True, False]
    assert [would_be_refused(deadline_s, "large", 4.0) for deadline_s in (1.9, 2.1)] == [True, False]


SECONDS = st.sampled_from((0.0, 0.001, 0.25, 3.0))


@given(
    terms=st.builds(
        Terms, SECONDS, SECONDS, SECONDS, SECONDS, SECONDS, st.integers(1, 400), st.integers(1, 200),
        st.floats(1.0, 2.0),
    ),
    told_s=st.floats(0.0, 10.0),
    heavy_s=st.floats(0.0, 10.0),
    free_in_s=st.lists(SECONDS, min_size=1, max_size=3).map(sorted),
    in_flight=st.lists(IMAGES, max_size=6),
    asked=IMAGES,
    passed_s=st.floats(0.0, 2.0),
)  # fmt: skip
def test_what_is_sure_to_be_admitted_is_admitted(
    terms: Terms,
    told_s: float,
    heavy_s: float,
    free_in_s: list[float],
    in_flight: list[Asked],
    asked: Asked,
    passed_s: float,
) -> None:
    """The short way to say so never says it of an image that `admission` refuses."""
    load = Load({"normal": told_s}, (("a", "normal", heavy_s),), free_in_s, seen=0, terms={"": terms})

    class Thorough(LoadPage):
        def _is_sure(self, *_: object) -> bool:
            return False

    page, thorough = LoadPage(), Thorough()
    for each in (page, thorough):
        each.tell(load, 100.0)
        for caller, priority, share, _, _ in in_flight:
            each.decoding(caller, priority, share)
    assert page.refusal(*asked, 100.0 + passed_s) == thorough.refusal(*asked, 100.0 + passed_s)
