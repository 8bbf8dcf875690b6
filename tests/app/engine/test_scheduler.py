"""The scheduler: by hand, and against a model of it over years of made-up time."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.engine.scheduler import Batch, Entry, Limits, Scheduler

ROOMY = Limits(batch_tokens=1000, queue_images=100, threads=4, streams=2)


def entry(key: str, tokens: int = 10, deadline: float = 1e9) -> Entry:
    return Entry(key, tokens, arrived=0.0, deadline=deadline)


def with_waiting(limits: Limits, *tokens: int) -> Scheduler:
    """A scheduler in whose queue "a", "b", "c" ... wait, with these weights."""
    scheduler = Scheduler(limits)
    for name, weight in zip("abcdefghijklm", tokens, strict=False):
        assert scheduler.submit(entry(name, weight))
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
        Limits(**{**sound, field: 0})


def test_more_streams_than_threads_are_refused() -> None:
    """Each stream needs a thread of its own."""
    with pytest.raises(ValueError, match="3 streams need as many threads, got 2"):
        Limits(batch_tokens=7, queue_images=5, threads=2, streams=3)


def test_an_empty_queue_gives_no_batch() -> None:
    """Where nothing waits there is nothing to start, and nothing to expire."""
    scheduler = Scheduler(ROOMY)
    assert scheduler.idle
    assert scheduler.next_batch() is None
    assert scheduler.next_deadline() is None
    assert scheduler.expire(1e12) == []


def test_a_lone_image_on_an_idle_engine_gets_all_threads() -> None:
    """One image with nobody else about is computed on every thread."""
    scheduler = with_waiting(ROOMY, 17)
    batch = scheduler.next_batch()
    assert keys(batch) == "a"
    assert batch is not None
    assert batch.threads == 4


def test_an_image_beside_a_running_batch_gets_its_share_of_threads() -> None:
    """The second stream never takes more than threads / streams, though one image waits alone."""
    scheduler = with_waiting(ROOMY, 10, 10)
    first = scheduler.next_batch()
    second = scheduler.next_batch()
    assert (keys(first), keys(second)) == ("a", "b")
    assert first is not None
    assert second is not None
    assert (first.threads, second.threads) == (2, 2)


def test_what_waits_is_shared_out_evenly_among_free_streams() -> None:
    """Two free streams get half of the waiting tokens each, not one stream all of them."""
    scheduler = with_waiting(ROOMY, 10, 20, 30, 10, 20, 30)
    assert keys(scheduler.next_batch()) == "abc"
    assert keys(scheduler.next_batch()) == "def"
    assert scheduler.next_batch() is None


def test_the_last_free_stream_takes_all_that_fits() -> None:
    """With one stream busy the other does not leave half of the queue for it."""
    scheduler = with_waiting(ROOMY, 10, 10)
    scheduler.next_batch()
    second = scheduler.next_batch()
    for name in "xyz":
        scheduler.submit(entry(name))
    assert scheduler.next_batch() is None
    assert second is not None
    scheduler.finished(second)
    assert keys(scheduler.next_batch()) == "xyz"


def test_a_batch_ends_before_the_entry_that_would_burst_its_budget() -> None:
    """Weights are added up to the budget and no further, in order: a small late one does not overtake."""
    one_stream = Limits(batch_tokens=50, queue_images=100, threads=1, streams=1)
    scheduler = with_waiting(one_stream, 20, 30, 1, 49, 1)
    batches = []
    while (batch := scheduler.next_batch()) is not None:
        batches.append(keys(batch))
        scheduler.finished(batch)
    assert batches == ["ab", "cd", "e"]


def test_an_image_heavier_than_the_budget_goes_alone() -> None:
    """An image that no batch could hold is still computed, by itself."""
    one_stream = Limits(batch_tokens=50, queue_images=100, threads=1, streams=1)
    scheduler = with_waiting(one_stream, 51, 5)
    batch = scheduler.next_batch()
    assert keys(batch) == "a"
    assert batch is not None
    assert batch.tokens == 51


def test_threads_that_do_not_divide_are_never_overbooked() -> None:
    """Five threads and three streams: one thread each, and the lone image's five are not given out twice."""
    limits = Limits(batch_tokens=10, queue_images=100, threads=5, streams=3)
    scheduler = with_waiting(limits, 10, 10, 10, 10)
    batches = [scheduler.next_batch() for _ in range(3)]
    assert [batch.threads for batch in batches if batch is not None] == [1, 1, 1]
    assert scheduler.next_batch() is None

    scheduler = with_waiting(limits, 10)
    lone = scheduler.next_batch()
    assert lone is not None
    assert lone.threads == 5
    scheduler.submit(entry("late"))
    assert scheduler.next_batch() is None, "a stream is free, but no thread is"


def test_a_full_queue_refuses_and_running_images_do_not_count() -> None:
    """The limit is on what waits; refused entries leave no trace."""
    limits = Limits(batch_tokens=10, queue_images=2, threads=1, streams=1)
    scheduler = with_waiting(limits, 10, 10)
    assert not scheduler.submit(entry("refused"))
    assert scheduler.waiting_images == 2
    assert keys(scheduler.next_batch()) == "a"
    assert scheduler.submit(entry("c"))
    assert not scheduler.submit(entry("refused"))


def test_a_key_that_waits_cannot_be_queued_again() -> None:
    """The same key twice is the caller's mistake, and loud."""
    scheduler = with_waiting(ROOMY, 10)
    with pytest.raises(ValueError, match="'a' is already waiting"):
        scheduler.submit(entry("a"))
    assert scheduler.waiting_images == 1


def test_a_cancelled_entry_is_gone_and_the_order_stays() -> None:
    """Cancelling takes one entry out of the middle; cancelling it again, or one that runs, does nothing."""
    limits = Limits(batch_tokens=10, queue_images=10, threads=1, streams=1)
    scheduler = with_waiting(limits, 10, 10, 10)
    running = scheduler.next_batch()
    assert keys(running) == "a"
    assert scheduler.cancel("b")
    assert not scheduler.cancel("b")
    assert not scheduler.cancel("a")
    assert not scheduler.cancel("never seen")
    assert running is not None
    scheduler.finished(running)
    assert keys(scheduler.next_batch()) == "c"


def test_expire_takes_out_exactly_the_late_ones() -> None:
    """A deadline has passed at its own moment, and not a moment before; running entries do not expire."""
    limits = Limits(batch_tokens=10, queue_images=10, threads=1, streams=1)
    scheduler = Scheduler(limits)
    for key, deadline in {"runs": 1.0, "b": 7.0, "c": 3.0, "d": 5.0}.items():
        scheduler.submit(entry(key, deadline=deadline))
    scheduler.next_batch()
    assert scheduler.next_deadline() == 3.0
    assert scheduler.expire(2.999) == []
    assert [late.key for late in scheduler.expire(5.0)] == ["c", "d"]
    assert scheduler.expire(5.0) == []
    assert scheduler.next_deadline() == 7.0
    assert scheduler.waiting_images == 1


def test_a_batch_cannot_finish_twice() -> None:
    """Threads are given back once; a second report is the caller's mistake, and loud."""
    scheduler = with_waiting(ROOMY, 10)
    batch = scheduler.next_batch()
    assert batch is not None
    scheduler.finished(batch)
    assert scheduler.idle
    with pytest.raises(ValueError, match="not in list"):
        scheduler.finished(batch)


def test_repr_is_a_status_line() -> None:
    """What a debugger or a log shows of a scheduler says how it is."""
    scheduler = with_waiting(Limits(batch_tokens=30, queue_images=9, threads=5, streams=2), 7, 11, 13, 17, 19)
    assert repr(scheduler) == "<Scheduler 5 waiting (67 tokens), 0 running on 0 of 5 threads>"
    scheduler.next_batch()
    assert repr(scheduler) == "<Scheduler 3 waiting (49 tokens), 1 running on 2 of 5 threads>"


# Against a model of it.


class SchedulerMachine(RuleBasedStateMachine):
    """Any sequence of calls, with what must hold after each."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.last_key = 0
        self.waiting: list[Entry] = []
        self.started: list[Batch] = []
        self.left: list[object] = []  # keys in the order in which they left the queue, each way

    @initialize(
        batch_tokens=st.integers(1, 300),
        queue_images=st.integers(1, 12),
        threads=st.integers(1, 7),
        streams=st.integers(1, 7),
    )
    def begin(self, batch_tokens: int, queue_images: int, threads: int, streams: int) -> None:
        self.limits = Limits(batch_tokens, queue_images, threads, min(streams, threads))
        self.scheduler = Scheduler(self.limits)

    @rule(tokens=st.integers(1, 200), patience=st.floats(0, 50))
    def submit(self, tokens: int, patience: float) -> None:
        self.last_key += 1
        new = Entry(self.last_key, tokens, self.now, self.now + patience)
        accepted = self.scheduler.submit(new)
        assert accepted == (len(self.waiting) < self.limits.queue_images)
        if accepted:
            self.waiting.append(new)

    @precondition(lambda self: self.waiting)
    @rule(place=st.integers(0, 11))
    def submit_again(self, place: int) -> None:
        with pytest.raises(ValueError, match="already waiting"):
            self.scheduler.submit(self.waiting[place % len(self.waiting)])

    @precondition(lambda self: self.last_key)
    @rule(draw=st.integers(0, 10_000))
    def cancel(self, draw: int) -> None:
        key = 1 + draw % self.last_key
        waits = [entry for entry in self.waiting if entry.key == key]
        assert self.scheduler.cancel(key) == bool(waits)
        for entry in waits:
            self._leaves(entry)

    @rule(passed=st.floats(0, 40))
    def expire(self, passed: float) -> None:
        self.now += passed
        late = self.scheduler.expire(self.now)
        assert late == [entry for entry in self.waiting if entry.deadline <= self.now]
        for entry in late:
            self._leaves(entry)

    @rule()
    def start_one(self) -> None:
        """Start one batch only: the engine may ask again later."""
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
        idle_before = not self.started
        batch = self.scheduler.next_batch()
        if batch is None:
            return None
        assert batch.entries, "an empty batch"
        assert list(batch.entries) == self.waiting[: len(batch.entries)], "not first come, first served"
        assert batch.tokens == sum(entry.tokens for entry in batch.entries)
        assert batch.tokens <= self.limits.batch_tokens or len(batch.entries) == 1
        assert batch.threads >= 1
        if idle_before and len(self.waiting) == 1:
            assert batch.threads == self.limits.threads
        for entry in batch.entries:
            self._leaves(entry)
        self.started.append(batch)
        return batch

    def _finish(self, batch: Batch) -> None:
        self.scheduler.finished(batch)
        self.started.remove(batch)

    def _leaves(self, entry: Entry) -> None:
        self.waiting.remove(entry)
        self.left.append(entry.key)

    @invariant()
    def counts_agree(self) -> None:
        tokens = sum(entry.tokens for entry in self.waiting)
        busy = sum(batch.threads for batch in self.started)
        assert self.scheduler.waiting_images == len(self.waiting)
        assert self.scheduler.waiting_tokens == tokens
        assert self.scheduler.idle == (not self.waiting and not self.started)
        deadlines = [entry.deadline for entry in self.waiting]
        assert self.scheduler.next_deadline() == (min(deadlines) if deadlines else None)
        assert repr(self.scheduler) == (
            f"<Scheduler {len(self.waiting)} waiting ({tokens} tokens), "
            f"{len(self.started)} running on {busy} of {self.limits.threads} threads>"
        )

    @invariant()
    def limits_hold(self) -> None:
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
        assert len(self.left) == len(set(self.left))


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=150, stateful_step_count=40)
