"""The scheduler: by hand, and against a model of it over years of made-up time."""

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.dispatch.policy.admission import Refusal
from app.dispatch.policy.batches import Batch, Rates
from app.dispatch.policy.brown_out import DEPTHS
from app.dispatch.policy.fair_queue import Entry
from app.dispatch.policy.scheduler import Scheduler
from app.priority import Priority
from tests.app.dispatch.policy.entries import INFINITE, MODELS, Sizes, entry, wait_s
from tests.support.examples import examples

ROOMY = Sizes(batch_tokens=1000, queue_images=100, threads=4, streams=2)


def with_waiting(limits: Sizes, *tokens: int) -> Scheduler:
    """A scheduler in whose queue "a", "b", "c" ... wait, with these weights."""
    scheduler = limits.scheduler()
    for name, weight in zip("abcdefghijklm", tokens, strict=False):
        assert scheduler.submit(entry(name, weight), 0.0) is None
    return scheduler


def keys(batch: Batch | None) -> str:
    assert batch is not None
    return "".join(str(entry.key) for entry in batch.entries)


# By hand.


@pytest.mark.parametrize("field", ["batch_tokens", "queue_images", "threads", "streams"])
def test_limits_below_one_are_refused(field: str) -> None:
    """No limit may be 0."""
    sound = {"batch_tokens": 7, "queue_images": 5, "threads": 3, "streams": 2}
    with pytest.raises(ValueError, match="at least 1"):
        Sizes(**{**sound, field: 0}).scheduler()


def test_more_streams_than_threads_are_refused() -> None:
    """Each stream needs a thread of its own."""
    with pytest.raises(ValueError, match="3 streams need as many threads, got 2"):
        Sizes(batch_tokens=7, queue_images=5, threads=2, streams=3).scheduler()


def test_an_empty_queue_gives_no_batch() -> None:
    """Where nothing waits there is nothing to start, and nothing to expire."""
    scheduler = ROOMY.scheduler()
    assert scheduler.idle
    assert scheduler.next_batch(0.0) is None
    assert scheduler.next_expiry() is None
    assert scheduler.expire(1e12) == []


def test_a_lone_image_on_an_idle_worker_gets_all_threads() -> None:
    """One image with nobody else about is computed on every thread."""
    scheduler = with_waiting(ROOMY, 17)
    batch = scheduler.next_batch(0.0)
    assert keys(batch) == "a"
    assert batch is not None
    assert batch.threads == 4


def test_an_image_beside_a_running_batch_gets_its_share_of_threads() -> None:
    """The second stream never takes more than threads / streams, though one image waits alone."""
    scheduler = with_waiting(ROOMY, 10, 10)
    first = scheduler.next_batch(0.0)
    second = scheduler.next_batch(0.0)
    assert (keys(first), keys(second)) == ("a", "b")
    assert first is not None
    assert second is not None
    assert (first.threads, second.threads) == (2, 2)


def test_what_waits_is_shared_out_evenly_among_free_streams() -> None:
    """Two free streams get half of the waiting tokens each, not one stream all of them."""
    scheduler = with_waiting(ROOMY, 10, 20, 30, 10, 20, 30)
    assert keys(scheduler.next_batch(0.0)) == "abc"
    assert keys(scheduler.next_batch(0.0)) == "def"
    assert scheduler.next_batch(0.0) is None


def test_the_last_free_stream_takes_all_that_fits() -> None:
    """With one stream busy the other does not leave half of the queue for it."""
    scheduler = with_waiting(ROOMY, 10, 10)
    scheduler.next_batch(0.0)
    second = scheduler.next_batch(0.0)
    for name in "xyz":
        scheduler.submit(entry(name), 0.0)
    assert scheduler.next_batch(0.0) is None
    assert second is not None
    scheduler.finished(second)
    assert keys(scheduler.next_batch(0.0)) == "xyz"


def test_a_batch_ends_before_the_entry_that_would_burst_its_budget() -> None:
    """Weights are added up to the budget and no further, in order: a small late one does not overtake."""
    one_stream = Sizes(batch_tokens=50, queue_images=100, threads=1, streams=1)
    scheduler = with_waiting(one_stream, 20, 30, 1, 49, 1)
    batches = []
    while (batch := scheduler.next_batch(0.0)) is not None:
        batches.append(keys(batch))
        scheduler.finished(batch)
    assert batches == ["ab", "cd", "e"]


def test_an_image_heavier_than_the_budget_goes_alone() -> None:
    """An image that no batch could hold is still computed, by itself."""
    one_stream = Sizes(batch_tokens=50, queue_images=100, threads=1, streams=1)
    scheduler = with_waiting(one_stream, 51, 5)
    batch = scheduler.next_batch(0.0)
    assert keys(batch) == "a"
    assert batch is not None
    assert batch.tokens == 51


def test_threads_that_do_not_divide_are_never_overbooked() -> None:
    """Five threads and three streams: one thread each, and the lone image's five are not given out twice."""
    limits = Sizes(batch_tokens=10, queue_images=100, threads=5, streams=3)
    scheduler = with_waiting(limits, 10, 10, 10, 10)
    batches = [scheduler.next_batch(0.0) for _ in range(3)]
    assert [batch.threads for batch in batches if batch is not None] == [1, 1, 1]
    assert scheduler.next_batch(0.0) is None

    scheduler = with_waiting(limits, 10)
    lone = scheduler.next_batch(0.0)
    assert lone is not None
    assert lone.threads == 5
    scheduler.submit(entry("late"), 0.0)
    assert scheduler.next_batch(0.0) is None, "a stream is free, but no thread is"


def test_a_full_queue_refuses_and_running_images_do_not_count() -> None:
    """The limit is on what waits; refused entries leave no trace, and are told when a place will be free."""
    limits = Sizes(batch_tokens=10, queue_images=2, threads=1, streams=1)
    scheduler = with_waiting(limits, 10, 10)
    refused = scheduler.submit(entry("refused"), 0.0)
    assert refused == Refusal("queue-full", pytest.approx(0.02))
    assert scheduler.waiting_images == 2
    assert keys(scheduler.next_batch(0.0)) == "a"
    assert scheduler.submit(entry("c"), 0.0) is None
    assert scheduler.submit(entry("refused"), 0.0) is not None


def test_a_key_that_waits_cannot_be_queued_again() -> None:
    """The same key twice is the caller's mistake, and loud."""
    scheduler = with_waiting(ROOMY, 10)
    with pytest.raises(ValueError, match="'a' is already waiting"):
        scheduler.submit(entry("a"), 0.0)
    assert scheduler.waiting_images == 1


def test_a_cancelled_entry_is_gone_and_the_order_stays() -> None:
    """Cancelling takes one entry out of the middle; cancelling it again, or one that runs, does nothing."""
    limits = Sizes(batch_tokens=10, queue_images=10, threads=1, streams=1)
    scheduler = with_waiting(limits, 10, 10, 10)
    running = scheduler.next_batch(0.0)
    assert keys(running) == "a"
    assert scheduler.cancel("b")
    assert not scheduler.cancel("b")
    assert not scheduler.cancel("a")
    assert not scheduler.cancel("never seen")
    assert running is not None
    scheduler.finished(running)
    assert keys(scheduler.next_batch(0.0)) == "c"


def test_expire_takes_out_exactly_what_can_no_longer_be_in_time() -> None:
    """An entry leaves when its deadline is as far away as it takes, and not a moment before; running entries
    do not expire."""
    limits = Sizes(batch_tokens=10, queue_images=10, threads=1, streams=1)
    scheduler = limits.scheduler()
    for key, deadline in {"runs": 1.0, "b": 7.0, "c": 3.0, "d": 5.0}.items():
        scheduler.submit(entry(key, seconds=0.5, deadline=deadline), 0.0)
    scheduler.next_batch(0.0)
    assert scheduler.next_expiry() == 2.5
    assert scheduler.expire(2.499) == []
    assert [late.key for late in scheduler.expire(4.5)] == ["c", "d"]
    assert scheduler.expire(4.5) == []
    assert scheduler.next_expiry() == 6.5
    assert scheduler.waiting_images == 1


def test_a_batch_cannot_finish_twice() -> None:
    """Threads are given back once; a second report is the caller's mistake, and loud."""
    scheduler = with_waiting(ROOMY, 10)
    batch = scheduler.next_batch(0.0)
    assert batch is not None
    scheduler.finished(batch)
    assert scheduler.idle
    with pytest.raises(ValueError, match="not in list"):
        scheduler.finished(batch)


def test_repr_is_a_status_line() -> None:
    """What a debugger or a log shows of a scheduler says how it is."""
    scheduler = with_waiting(Sizes(batch_tokens=30, queue_images=9, threads=5, streams=2), 7, 11, 13, 17, 19)
    assert repr(scheduler) == "<Scheduler 5 waiting (67 tokens), 0 running on 0 of 5 threads, brown-out 0>"
    scheduler.next_batch(0.0)
    assert repr(scheduler) == "<Scheduler 3 waiting (49 tokens), 1 running on 2 of 5 threads, brown-out 0>"


# Deadlines.

SLOW = Sizes(batch_tokens=10_000, queue_images=1000, threads=2, streams=2, queue_s=4.0)


def loaded(limits: Sizes, images: int, seconds: float = 1.0, **options: object) -> Scheduler:
    """A scheduler with so many images, each of which takes so long, the first of them running."""
    scheduler = limits.scheduler()
    for number in range(images):
        assert scheduler.submit(entry(number, 10, seconds, **options), 0.0) is None  # type: ignore[arg-type]
    while scheduler.next_batch(0.0) is not None:
        pass
    return scheduler


def test_a_deadline_that_what_waits_lets_pass_is_refused_at_once() -> None:
    """Two streams, one batch of a second in each, two seconds of work behind them: the next image begins
    after two seconds. What can wait so long is accepted, what cannot is told when it could be."""
    one_each = Sizes(batch_tokens=10, queue_images=1000, threads=2, streams=2)
    scheduler = loaded(one_each, 4)
    assert scheduler.submit(entry("late", 10, 0.5, deadline=2.2), 0.0) == Refusal(
        "deadline-unmeetable", pytest.approx(0.3)
    )
    assert scheduler.submit(entry("in time", 10, 0.5, deadline=3.0), 0.0) is None
    assert scheduler.submit(entry("patient", 10, 0.5), 0.0) is None


def test_running_batches_count_with_what_is_left_of_them() -> None:
    """Half a second later there is half a second less to wait for; after its predicted end a batch may end
    any moment."""
    one_each = Sizes(batch_tokens=10, queue_images=1000, threads=2, streams=2)
    scheduler = loaded(one_each, 2)
    assert wait_s(scheduler, None, "normal", 1.0, 0.0) == 1.0
    assert wait_s(scheduler, None, "normal", 1.0, 0.5) == 0.5
    assert wait_s(scheduler, None, "normal", 1.0, 1.5) == 0.0


def test_one_free_stream_is_no_wait() -> None:
    """An image need not wait for the longer of two batches."""
    one_each = Sizes(batch_tokens=10, queue_images=1000, threads=2, streams=2)
    scheduler = one_each.scheduler()
    for key, seconds in {"short": 1.0, "long": 9.0}.items():
        scheduler.submit(entry(key, 10, seconds), 0.0)
    while scheduler.next_batch(0.0) is not None:
        pass
    assert wait_s(scheduler, "", "normal", 1.0, 0.0) == 1.0
    scheduler.submit(entry("c", 10, 4.0), 0.0)
    assert wait_s(scheduler, "", "normal", 1.0, 0.0) == 5.0
    scheduler.submit(entry("d", 10, 6.0), 0.0)
    assert wait_s(scheduler, "", "normal", 1.0, 0.0) == 10.0, "and then both streams share what waits"


def test_a_deadline_that_even_an_idle_worker_misses_is_refused_without_a_time_to_retry() -> None:
    """Waiting would not help. (The first such image in a while is tried, see below.)"""
    scheduler = SLOW.scheduler()
    tried = entry("tried", seconds=0.6, deadline=0.5)
    assert scheduler.submit(tried, 0.0) is None
    scheduler.cancel("tried")
    assert scheduler.submit(entry("refused", seconds=0.6, deadline=0.5), 0.1) == Refusal(
        "deadline-unmeetable", None
    )


def test_an_idle_worker_tries_an_image_a_second_that_it_believes_too_slow_for() -> None:
    """A prediction that is far too high could otherwise never be put right: nothing would be computed."""
    scheduler = SLOW.scheduler()
    for start in (0.0, 1.0, 2.0):
        assert scheduler.submit(entry("tried", seconds=60.0, deadline=start + 0.5), start) is None
        assert scheduler.expire(start) == []
        batch = scheduler.next_batch(start)
        assert keys(batch) == "tried"
        assert batch is not None
        scheduler.finished(batch)
        assert scheduler.submit(entry("b", seconds=60.0, deadline=start + 1.0), start + 0.5) is not None


def test_without_a_deadline_of_its_own_an_image_waits_no_longer_than_the_limit() -> None:
    """The queue is limited by predicted seconds, too; how long the image itself takes does not count."""
    one_each = Sizes(batch_tokens=10, queue_images=1000, threads=1, streams=1)
    scheduler = loaded(one_each, 4)
    assert scheduler.submit(entry("c", 10, 9.0, deadline=30.0, wait_limit_s=4.0), 0.0) is None
    refused = scheduler.submit(entry("d", 10, 9.0, deadline=30.0, wait_limit_s=4.0), 0.0)
    assert refused == Refusal("queue-full", pytest.approx(9.0))
    assert scheduler.submit(entry("e", 10, 9.0, deadline=30.0), 0.0) is None, "its deadline allows it to wait"


def test_caution_is_added_to_what_is_promised() -> None:
    """Where predictions are exceeded by a half now and then, half as much again must fit."""
    scheduler = SLOW.scheduler(caution=1.5)
    scheduler.submit(entry("probe", seconds=9, deadline=1.0), 0.0)
    scheduler.cancel("probe")
    assert scheduler.submit(entry("tight", seconds=0.4, deadline=0.59), 0.0) is not None
    assert scheduler.submit(entry("fits", seconds=0.4, deadline=0.61), 0.0) is None


def test_a_batch_ends_before_the_image_that_would_make_another_late() -> None:
    """Patient images are not taken into the batch of one in haste."""
    scheduler = Sizes(batch_tokens=1000, queue_images=100, threads=1, streams=1).scheduler()
    for key, deadline in {"a": 0.35, "b": 99.0, "c": 99.0, "d": 99.0}.items():
        assert scheduler.submit(entry(key, 10, 0.1, deadline=deadline), 0.0) is None
    batch = scheduler.next_batch(0.0)
    assert keys(batch) == "abc"
    assert batch is not None
    assert batch.ends == pytest.approx(0.3)


def test_a_batch_is_as_large_as_its_images_left_room_for() -> None:
    """On a device with a second of overhead the last ten are taken so late that only four would be in time in
    one batch. They stay together: else those behind them were late, each in a batch of its own."""
    limits = Sizes(batch_tokens=100, queue_images=100, threads=1, streams=1)
    scheduler = limits.scheduler(overhead_s=1.0)
    for number in range(30):
        assert scheduler.submit(entry(number, 10, 0.1, deadline=12.0), 0.0) is None
    for now in (0.0, 2.0, 10.6):
        batch = scheduler.next_batch(now)
        assert batch is not None
        assert len(batch.taken) == 10
        scheduler.finished(batch)


def test_what_a_batch_costs_beside_its_images_counts_once() -> None:
    """Its end is predicted with it."""
    scheduler = Sizes(batch_tokens=1000, queue_images=100, threads=1, streams=1).scheduler(overhead_s=0.25)
    for key in "ab":
        scheduler.submit(entry(key, 10, 0.125), 0.0)
    batch = scheduler.next_batch(1.0)
    assert batch is not None
    assert batch.ends == 1.5


# Ratios that are lowered.


def test_an_image_that_may_be_lowered_is_as_far_as_its_deadline_needs() -> None:
    """The largest ratio that fits is taken: at 10 % less a depth, two depths for 0.8 of a second."""
    scheduler = SLOW.scheduler()
    assert scheduler.submit(entry("a", 10, 1.0, falls=0.1, deadline=0.8), 0.0) is None
    batch = scheduler.next_batch(0.0)
    assert batch is not None
    (taken,) = batch.taken
    assert (taken.depth, taken.by_deadline) == (2, True)
    assert batch.ends == pytest.approx(0.8)
    assert scheduler.depth == 0, "that is no brown-out"


def test_a_ratio_is_lowered_further_when_the_batch_is_taken_late() -> None:
    """What has waited longer than predicted makes up for it."""
    scheduler = Sizes(batch_tokens=10, queue_images=100, threads=1, streams=1).scheduler()
    for key in "ab":
        scheduler.submit(entry(key, 10, 1.0, falls=0.1, deadline=9.0), 0.0)
    first = scheduler.next_batch(0.0)
    assert first is not None
    scheduler.finished(first)
    second = scheduler.next_batch(8.5)
    assert second is not None
    assert [(taken.depth, taken.by_deadline) for taken in second.taken] == [(5, True)]


def test_all_that_may_be_is_lowered_before_one_is_refused() -> None:
    """Four seconds of work that may fall to a tenth make way for an image that can wait for one."""
    one_each = Sizes(batch_tokens=10, queue_images=1000, threads=1, streams=1)
    scheduler = one_each.scheduler()
    for number in range(5):
        assert scheduler.submit(entry(number, 10, 1.0, falls=0.1), 0.0) is None
    running = scheduler.next_batch(0.0)
    assert scheduler.depth == 0
    assert scheduler.submit(entry("rigid", 10, 0.25, deadline=3.0), 0.0) is None
    assert scheduler.depth > 0
    assert running is not None
    scheduler.finished(running)
    batch = scheduler.next_batch(1.0)
    assert batch is not None
    assert {(taken.depth, taken.by_deadline) for taken in batch.taken} == {(scheduler.depth, False)}


def test_a_brown_out_begins_before_an_image_would_be_refused() -> None:
    """A quarter of what an image may wait is waited for at ease; beyond that the others are lowered."""
    one_each = Sizes(batch_tokens=10, queue_images=1000, threads=1, streams=1)
    scheduler = loaded(one_each, 45, falls=0.05)
    assert scheduler.submit(entry("patient", 10, 1.0, deadline=300.0), 0.0) is None
    assert scheduler.depth == 0
    assert scheduler.submit(entry("less", 10, 1.0, deadline=100.0), 0.0) is None
    assert scheduler.depth == 1


def test_a_brown_out_passes_when_load_has_fallen() -> None:
    """Step by step, and only after a while without much work on offer."""
    one_each = Sizes(batch_tokens=10, queue_images=1000, threads=1, streams=1)
    scheduler = loaded(one_each, 60, 0.1, falls=0.1, deadline=5.0)
    deep = scheduler.depth
    assert deep > 0
    while scheduler.expire(100.0):
        pass
    depths = []
    for now in range(1, 60):
        scheduler.relax(float(now))
        depths.append(scheduler.depth)
    assert all(before - after in (0, 1) for before, after in pairwise([deep, *depths]))
    assert depths[-1] == 0


# Shares.


def test_callers_take_turns_whatever_they_have_waiting() -> None:
    """One caller's backlog does not delay another's image."""
    one_each = Sizes(batch_tokens=10, queue_images=1000, threads=1, streams=1)
    scheduler = one_each.scheduler()
    for number in range(6):
        scheduler.submit(entry(f"a{number}", caller="a"), 0.0)
    for number in range(2):
        scheduler.submit(entry(f"b{number}", caller="b"), 0.0)
    order = []
    while (batch := scheduler.next_batch(0.0)) is not None:
        order.append(keys(batch))
        scheduler.finished(batch)
    assert order == ["a0", "b0", "a1", "b1", "a2", "a3", "a4", "a5"]


def test_the_wait_of_a_caller_depends_on_that_callers_backlog() -> None:
    """Whoever has nothing waiting is before most of what others have."""
    one_each = Sizes(batch_tokens=10, queue_images=1000, threads=1, streams=1)
    scheduler = loaded(one_each, 8, caller="a")
    assert wait_s(scheduler, "a", "normal", 1.0, 0.0) == 8.0
    assert wait_s(scheduler, "b", "normal", 1.0, 0.0) == 2.0
    assert scheduler.submit(entry("b", 10, 1.0, deadline=4.0, caller="b"), 0.0) is None
    assert scheduler.submit(entry("c", 10, 1.0, deadline=4.0, caller="a"), 0.0) is not None


def test_one_caller_cannot_take_the_whole_queue() -> None:
    """Three quarters while alone, and a place is left for whoever comes."""
    limits = Sizes(batch_tokens=10, queue_images=100, threads=1, streams=1)
    scheduler = limits.scheduler()
    accepted = [scheduler.submit(entry(number, caller="a"), 0.0) is None for number in range(100)]
    assert sum(accepted) == 75
    others = [scheduler.submit(entry(f"b{n}", caller="b"), 0.0) is None for n in range(100)]
    assert sum(others) == 19
    assert scheduler.submit(entry("c", caller="c"), 0.0) is None


def test_a_higher_priority_goes_first_and_a_lower_one_does_not_starve() -> None:
    """Of 21 images of the same cost, 16 are high, 4 normal and 1 batch, as long as all three wait."""
    one_each = Sizes(batch_tokens=10, queue_images=1000, threads=1, streams=1)
    scheduler = one_each.scheduler()
    priorities: tuple[Priority, ...] = ("batch", "normal", "high")
    for priority in priorities:
        for number in range(100):
            scheduler.submit(entry((priority, number), priority=priority), 0.0)
    served = []
    for _ in range(21 * 4):
        batch = scheduler.next_batch(0.0)
        assert batch is not None
        served += [taken.priority for taken in batch.entries]
        scheduler.finished(batch)
    assert {priority: served.count(priority) for priority in priorities} == {
        "batch": 4,
        "normal": 16,
        "high": 64,
    }


def batches_of(scheduler: Scheduler, number: int) -> list[Batch]:
    """So many batches, each computed before the next is formed."""
    found = []
    for _ in range(number):
        batch = scheduler.next_batch(0.0)
        assert batch is not None
        scheduler.finished(batch)
        found.append(batch)
    return found


def test_a_batch_holds_images_of_one_model_and_is_full_all_the_same() -> None:
    """Images of two models that come in turns are not computed one by one, and those of the model that was
    not asked first do not wait for ever."""
    scheduler = Sizes(batch_tokens=40, queue_images=1000, threads=1, streams=1).scheduler()
    for number in range(16):
        scheduler.submit(entry(number, caller=str(number), model=MODELS[number % 2]), 0.0)
    batches = batches_of(scheduler, 4)
    assert [batch.model for batch in batches] == ["", "other", "", "other"]
    assert [[taken.key for taken in batch.entries] for batch in batches] == [
        [0, 2, 4, 6],
        [1, 3, 5, 7],
        [8, 10, 12, 14],
        [9, 11, 13, 15],
    ]


def test_a_caller_gets_an_equal_share_whichever_model_it_asks() -> None:
    """By cost: one who asks a model whose images take four times as long gets a quarter as many."""
    scheduler = Sizes(batch_tokens=80, queue_images=1000, threads=1, streams=1).scheduler()
    for number in range(100):
        scheduler.submit(entry(("a", number), 10, 0.01, caller="a"), 0.0)
        scheduler.submit(entry(("b", number), 40, 0.04, caller="b", model="other"), 0.0)
    served = [taken.caller for batch in batches_of(scheduler, 10) for taken in batch.entries]
    assert (served.count("a"), served.count("b")) == (40, 10)


def test_whoever_was_served_before_their_turn_waits_the_longer_afterwards() -> None:
    """A batch that another began takes images of its model along; what they cost is counted."""
    scheduler = Sizes(batch_tokens=20, queue_images=1000, threads=1, streams=1).scheduler()
    for number in range(60):
        scheduler.submit(entry(("a", number), caller="a"), 0.0)
        scheduler.submit(entry(("b", number), caller="b", model="other"), 0.0)
        scheduler.submit(entry(("c", number), caller="c", model="other"), 0.0)
    served = [taken.caller for batch in batches_of(scheduler, 45) for taken in batch.entries]
    assert {caller: served.count(caller) for caller in "abc"} == {"a": 30, "b": 30, "c": 30}


def test_one_callers_models_are_served_in_the_order_in_which_they_were_asked() -> None:
    """The oldest image decides, so a stream of images for one model does not hold up another's."""
    scheduler = Sizes(batch_tokens=40, queue_images=1000, threads=1, streams=1).scheduler()
    scheduler.submit(entry("first", arrived=0.0), 0.0)
    scheduler.submit(entry("second", arrived=1.0, model="other"), 1.0)
    for number in range(20):
        scheduler.submit(entry(number, arrived=2.0 + number), 2.0 + number)
    assert [batch.model for batch in batches_of(scheduler, 3)] == ["", "other", ""]


def test_a_batch_costs_what_its_model_costs() -> None:
    """Overhead and pace are those of the model on the worker that computes it."""
    scheduler = Sizes(batch_tokens=100, queue_images=1000, threads=2, streams=2).scheduler()
    scheduler.workers[1].rates["other"] = Rates(overhead_s=0.5, pace=2.0)
    scheduler.refresh()
    for number in range(2):
        scheduler.submit(entry(number, seconds=0.25, caller=str(number), model=MODELS[number]), 0.0)
    ends = {}
    while (batch := scheduler.next_batch(0.0)) is not None:
        ends[batch.model] = batch.ends
    assert ends == {"": 0.25, "other": 0.5 + 2 * 0.25}
    assert [scheduler.streams_at(model, 0.0).overhead_s for model in MODELS] == [0.0, 0.5]


# Against a model of it.

COMMON = st.sampled_from(["", "a", "b", "c"])
PRIORITY: st.SearchStrategy[Priority] = st.sampled_from(["high", "normal", "batch"])


class SchedulerMachine(RuleBasedStateMachine):
    """Any sequence of calls, with what must hold after each."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.last_key = 0
        self.waiting: dict[object, Entry] = {}  # as they were submitted, in order
        self.started: list[Batch] = []
        self.left: list[object] = []  # keys in the order in which they left the queue, each way

    @initialize(
        batch_tokens=st.integers(1, 300),
        queue_images=st.integers(1, 12),
        threads=st.integers(1, 7),
        streams=st.integers(1, 7),
        overhead_s=st.sampled_from([0.0, 0.5]),
        caution=st.sampled_from([1.0, 1.5]),
    )
    def begin(
        self,
        batch_tokens: int,
        queue_images: int,
        threads: int,
        streams: int,
        overhead_s: float,
        caution: float,
    ) -> None:
        self.limits = Sizes(batch_tokens, queue_images, threads, min(streams, threads))
        self.scheduler = self.limits.scheduler(overhead_s, caution)

    @rule(
        tokens=st.integers(1, 200),
        seconds=st.floats(0.001, 5),
        falls=st.sampled_from([0.0, 0.05, 0.1]),
        patience=st.one_of(st.floats(0.001, 50), st.just(INFINITE)),
        wait_limit_s=st.sampled_from([INFINITE, 10.0]),
        caller=COMMON,
        priority=PRIORITY,
        model=st.sampled_from(MODELS),
    )
    def submit(
        self,
        tokens: int,
        seconds: float,
        falls: float,
        patience: float,
        wait_limit_s: float,
        caller: str,
        priority: Priority,
        model: str = "",
    ) -> None:
        self.last_key += 1
        new = entry(
            self.last_key,
            tokens,
            seconds,
            falls=falls,
            alone_s=0.75 * seconds,
            arrived=self.now,
            deadline=self.now + patience,
            wait_limit_s=wait_limit_s,
            caller=caller,
            priority=priority,
            model=model,
        )
        held = sum(other.caller == caller for other in self.waiting.values())
        place = held < 3 * (self.limits.queue_images - len(self.waiting))
        depth = self.scheduler.depth
        idle = self.scheduler.idle
        refusal = self.scheduler.submit(new, self.now)
        if refusal is None:
            assert place
            self.waiting[new.key] = new
            return
        assert refusal.retry_after_s is None or refusal.retry_after_s >= 0
        assert self.scheduler.depth <= depth, "what is refused lowers nobody"
        if place:
            assert patience < INFINITE or wait_limit_s < INFINITE, "it can wait for ever"
            assert not idle or patience < self.scheduler.caution * new.alone_s[-1] + 1e-9
        else:
            assert refusal.reason == "queue-full"

    @precondition(lambda self: self.waiting)
    @rule(place=st.integers(0, 11))
    def submit_again(self, place: int) -> None:
        known = list(self.waiting.values())[place % len(self.waiting)]
        with pytest.raises(ValueError, match="already waiting"):
            self.scheduler.submit(known, self.now)

    @precondition(lambda self: self.last_key)
    @rule(draw=st.integers(0, 10_000))
    def cancel(self, draw: int) -> None:
        key = 1 + draw % self.last_key
        assert self.scheduler.cancel(key) == (key in self.waiting)
        if key in self.waiting:
            self._leaves(key)

    @precondition(lambda self: self.waiting)
    @rule(owner=st.integers(0, 2))
    def a_front_end_goes(self, owner: int) -> None:
        """With all that it had waiting, whatever the callers."""
        for key in [key for key in self.waiting if isinstance(key, int) and key % 3 == owner]:
            assert self.scheduler.cancel(key)
            self._leaves(key)

    @rule(passed=st.floats(0, 40))
    def expire(self, passed: float) -> None:
        self.now += passed
        late = {gone.key for gone in self.scheduler.expire(self.now)}
        must = {key for key, waits in self.waiting.items() if waits.deadline <= self.now}
        may = {
            key
            for key, waits in self.waiting.items()
            if self.now + min(waits.alone_s[-1], self.scheduler.overhead_s(waits.model) + waits.seconds[-1])
            >= waits.deadline - 1e-9
        }
        assert must <= late <= may
        for key in late:
            self._leaves(key)

    @rule(passed=st.floats(0, 10))
    def relax(self, passed: float) -> None:
        depth = self.scheduler.depth
        self.now += passed
        self.scheduler.relax(self.now)
        assert self.scheduler.depth <= depth

    @rule()
    def start_one(self) -> None:
        """Start one batch only: the worker may ask again later."""
        self._start()

    @rule()
    def start_all(self) -> None:
        while self._start() is not None:
            pass
        busy = sum(batch.threads for batch in self.started)
        compute_is_free = len(self.started) < self.limits.streams and busy < self.limits.threads
        assert not (self.waiting and compute_is_free), "work waits while compute is free"

    @precondition(lambda self: self.started)
    @rule(place=st.integers(0, 6))
    def finish(self, place: int) -> None:
        self._finish(self.started[place % len(self.started)])

    def _start(self) -> Batch | None:
        idle_before, alone = not self.started, len(self.waiting) == 1
        batch = self.scheduler.next_batch(self.now)
        if batch is None:
            return None
        assert batch.entries, "an empty batch"
        assert batch.tokens == sum(taken.entry.tokens[taken.depth] for taken in batch.taken)
        assert batch.tokens <= self.limits.batch_tokens or len(batch.entries) == 1
        assert batch.threads >= 1
        if idle_before and alone:
            assert batch.threads == self.limits.threads
        assert {taken.entry.model for taken in batch.taken} == {batch.model}, "a batch of several models"
        for taken in batch.taken:
            assert self.scheduler.depth <= taken.depth < DEPTHS
            assert taken.by_deadline == (taken.depth > self.scheduler.depth)
            # Within one caller's share of a priority it is first come, first served for each model.
            alike = taken.entry.caller, taken.entry.priority, taken.entry.model
            same = next(
                key
                for key, waits in self.waiting.items()
                if (waits.caller, waits.priority, waits.model) == alike
            )
            assert same == taken.entry.key
            if len(batch.taken) > 1:
                promised = self.now + self.scheduler.caution * (batch.ends - self.now)
                first = batch.taken[0].entry
                work = sum(taken.entry.seconds[taken.depth] for taken in batch.taken)
                reserved = first.seconds[batch.taken[0].depth] + first.batch_slack_s
                # What is late whoever comes behind it has nothing to win by a smaller batch.
                place = batch.taken.index(taken)
                before = sum(other.entry.seconds[other.depth] for other in batch.taken[:place])
                own_end = self.scheduler.overhead_s(taken.entry.model) + before + taken.entry.seconds[-1]
                assert (
                    promised <= taken.entry.deadline + 1e-9
                    or first.deadline < promised
                    or work <= reserved + 1e-9
                    or self.now + self.scheduler.caution * own_end > taken.entry.deadline
                )
            self._leaves(taken.entry.key)
        self.started.append(batch)
        return batch

    def _finish(self, batch: Batch) -> None:
        self.scheduler.finished(batch)
        self.started.remove(batch)

    def _leaves(self, key: object) -> None:
        del self.waiting[key]
        self.left.append(key)

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        busy = sum(batch.threads for batch in self.started)
        assert self.scheduler.waiting_images == len(self.waiting)
        assert self.scheduler.waiting_tokens <= sum(waits.tokens[0] for waits in self.waiting.values())
        assert self.scheduler.waiting_tokens >= sum(waits.tokens[-1] for waits in self.waiting.values())
        least = sum(waits.seconds[-1] for waits in self.waiting.values())
        most = sum(waits.seconds[0] for waits in self.waiting.values())
        assert least - 1e-6 <= self.scheduler.waiting_s <= most + 1e-6
        assert self.scheduler.idle == (not self.waiting and not self.started)
        assert repr(self.scheduler) == (
            f"<Scheduler {len(self.waiting)} waiting ({self.scheduler.waiting_tokens} tokens), "
            f"{len(self.started)} running on {busy} of {self.limits.threads} threads, "
            f"brown-out {self.scheduler.depth}>"
        )

    @invariant()
    def what_can_expire_is_known(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        due = self.scheduler.next_expiry()
        deadlines = [waits.deadline for waits in self.waiting.values() if waits.deadline < INFINITE]
        assert (due is None) == (not deadlines)
        assert due is None or due <= min(deadlines)

    @invariant()
    def waits_are_predicted(self) -> None:
        """A wait is never below nothing, and no shorter for whoever has work waiting than for a newcomer."""
        if not hasattr(self, "scheduler"):
            return
        for priority in ("high", "normal", "batch"):
            newcomers = wait_s(self.scheduler, None, priority, 1.0, self.now)  # type: ignore[arg-type]
            assert 0 <= newcomers < INFINITE
            for caller in ("", "a"):
                wait = wait_s(self.scheduler, caller, priority, 1.0, self.now)  # type: ignore[arg-type]
                assert newcomers <= wait + 1e-6

    @invariant()
    def limits_hold(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        assert len(self.started) <= self.limits.streams
        assert sum(batch.threads for batch in self.started) <= self.limits.threads

    @invariant()
    def nothing_leaves_twice(self) -> None:
        assert len(self.left) == len(set(self.left))

    def teardown(self) -> None:
        """Whatever happened before, what waits is computed once compute comes free, each entry once."""
        if not hasattr(self, "scheduler"):
            return
        while self.waiting or self.started:
            while self._start() is not None:
                pass
            assert self.started, "entries wait for ever"
            self._finish(self.started[0])
        assert self.scheduler.idle
        assert self.scheduler.waiting_tokens == 0
        assert self.scheduler.waiting_s == 0
        assert len(self.left) == len(set(self.left))


def test_what_is_in_time_only_among_images_as_low_as_itself_is_not_lost() -> None:
    """An entry that was neither queued nor refused would have waited for ever."""
    state = SchedulerMachine()
    state.begin(batch_tokens=1, queue_images=2, threads=1, streams=1, overhead_s=0.0, caution=1.0)
    first = {"falls": 0.0, "patience": 1.0, "priority": "high", "seconds": 4.0}
    second = {"falls": 0.05, "patience": 5.0, "priority": "normal", "seconds": 1.5}
    for asked in (first, second):
        state.submit(caller="", tokens=1, wait_limit_s=float("inf"), **asked)
        state.counts_agree()
    state.teardown()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=examples(75), stateful_step_count=40)
