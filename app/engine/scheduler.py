"""Which images are accepted, which are computed together, when, at which depth of a brown-out and on how many
threads. Pure policy: no clock, no sockets, no torch. The caller passes ``now`` (seconds, any monotonic
origin), does what is returned, and reports back.

There is no timer that waits for more images: a batch is taken whenever compute is free, so batches grow by
themselves under load. The budget of a batch is in tokens weighted by cost, so that pruned images, which
cost less, come in larger batches of about the same duration; and a batch ends early where one image more
would make an image in it late.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from typing import Literal

from app.engine.brown_out import DEPTHS, BrownOut
from app.engine.fair_queue import WEIGHTS, Entry, FairQueue, Priority
from app.engine.spare import batch_s, mates_s, spare_s

Reason = Literal["queue-full", "deadline-unmeetable"]

# A caller may hold so many times the free places of the queue: three quarters of all while alone, and a
# place is always left for whoever comes new (Choudhury and Hahne 1998, dynamic thresholds).
_TIMES_FREE = 3
# An idle engine takes one image in so many seconds whose deadline it is predicted to miss: a wrong
# prediction can be put right only by computing something.
_PROBE_EVERY_S = 1.0
# While less than this share of what an image may wait is waited for, there is no haste to lower ratios.
_COMFORT = 0.25

# A batch with so many times its overhead in work is large enough: larger ones would save little more.
_ENOUGH = 10.0
_RATE_MEMORY_S = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one engine may hold and run at once.

    ``streams`` batches at most run at once, on ``threads`` compute threads together. ``queue_s`` is how long
    an image without a deadline of its own may be predicted to wait.
    """

    batch_tokens: int
    queue_images: int
    threads: int
    streams: int
    queue_s: float = 10.0

    def __post_init__(self) -> None:
        if min(self.batch_tokens, self.queue_images, self.threads, self.streams) < 1:
            raise ValueError(f"limits must be at least 1: {self}")
        if self.streams > self.threads:
            raise ValueError(f"{self.streams} streams need as many threads, got {self.threads}")
        if not self.queue_s > 0:
            raise ValueError(f"queue_s must be above 0, got {self.queue_s}")

    @property
    def stream_threads(self) -> int:
        """Threads of a batch while others run beside it."""
        return max(1, self.threads // self.streams)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An image that is not accepted. ``retry_after_s``: when it could be, as predicted; None where even an
    idle engine could not meet its deadline."""

    reason: Reason
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class Taken:
    """An entry of a batch, the depth whose ratio it gets, and whether its own deadline made it so deep."""

    entry: Entry
    depth: int
    by_deadline: bool

    @property
    def tokens(self) -> int:
        """Its weight at that depth."""
        return self.entry.tokens[self.depth]


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries to compute together on ``threads`` threads; predicted to end at ``ends``."""

    taken: tuple[Taken, ...]
    threads: int
    ends: float

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What is computed."""
        return tuple(taken.entry for taken in self.taken)

    @property
    def tokens(self) -> int:
        """Weight of the whole batch."""
        return sum(taken.tokens for taken in self.taken)


@dataclass(slots=True)
class Scheduler:
    """Fair shares for priorities and callers, in batches, with deadlines kept by prediction.

    ``overhead_s`` is what a batch costs beside its images, ``caution`` the factor on a batch's prediction
    that makes it one to promise by; whoever predicts keeps both up to date.
    """

    limits: Limits
    overhead_s: float = 0.0
    caution: float = 1.0
    _queue: FairQueue = field(default_factory=lambda: FairQueue(DEPTHS))
    _running: list[Batch] = field(default_factory=list)
    _brown_out: BrownOut = field(init=False)
    _tokens: int = 0
    _leaving: list[tuple[float, int, Entry]] = field(default_factory=list)
    _accepted: int = 0
    _probed: float = float("-inf")
    # Seconds of work a second that were accepted lately in each priority: what one may expect to come.
    _rates: dict[Priority, float] = field(default_factory=lambda: dict.fromkeys(WEIGHTS, 0.0))
    _rates_at: float = float("-inf")

    def __post_init__(self) -> None:
        self._brown_out = BrownOut(self.limits.streams)

    def __repr__(self) -> str:
        return (
            f"<Scheduler {self.waiting_images} waiting ({self.waiting_tokens} tokens), "
            f"{len(self._running)} running on {self._busy_threads} of {self.limits.threads} threads, "
            f"brown-out {self.depth}>"
        )

    @property
    def waiting_images(self) -> int:
        """Images in the queue."""
        return len(self._queue)

    @property
    def waiting_tokens(self) -> int:
        """Their weight, as asked."""
        return self._tokens

    @property
    def waiting_s(self) -> float:
        """The compute that it is predicted to take, in seconds of one stream."""
        return self._queue.work[self.depth]

    @property
    def depth(self) -> int:
        """How deep the brown-out is; 0: there is none."""
        return self._brown_out.depth

    @property
    def running(self) -> bool:
        """Whether a batch is under way."""
        return bool(self._running)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._queue and not self._running

    def submit(self, entry: Entry, now: float) -> Refusal | None:
        """Queue an entry; a Refusal if there is no place, or if it is predicted to be late even with all that
        allow it lowered. Raises ValueError for a key that is waiting already."""
        if entry.key in self._queue:
            raise ValueError(f"{entry.key!r} is already waiting")
        self._brown_out.offered(entry.seconds, now)
        passed = math.exp(min(0.0, self._rates_at - now) / _RATE_MEMORY_S)
        self._rates = {name: rate * passed for name, rate in self._rates.items()}
        self._rates_at = max(now, self._rates_at)
        self.relax(now)
        free = self.limits.queue_images - len(self._queue)
        if self._queue.held_by(entry.caller) >= _TIMES_FREE * free:
            return Refusal("queue-full", self._wait(entry, self.depth, now))
        found = self._place(entry, now)
        if found is not None:
            brown_out, own = found
            before = self._before(entry, brown_out, now)
            wait = self._start(before, now) - now
            at_ease = wait <= _COMFORT * self._spare(entry, own, before, now)
            self._brown_out.deepen(brown_out, wait, now)
            if not at_ease:
                self._brown_out.press(wait, now)
            mates_s = self._mates_s(entry, own, before, now)
            entry = replace(entry.at_least(own if own > brown_out else 0), mates_s=mates_s)
            # Where it can no longer be computed in time it is given up, and costs nobody else theirs.
            self._accept(entry, entry.deadline - min(entry.alone_s[-1], self.overhead_s + entry.seconds[-1]))
            return None
        if self.idle and now >= self._probed + _PROBE_EVERY_S:
            self._probed = now
            self._accept(entry.at_least(DEPTHS - 1), entry.deadline)
            return None
        return self._refusal(entry, now)

    def cancel(self, key: Hashable) -> bool:
        """Forget a waiting entry; False if it is not waiting (unknown, running or done)."""
        return self._withdraw(key) is not None

    def expire(self, now: float) -> list[Entry]:
        """Take out and return all entries that can no longer be computed before their deadline."""
        late = []
        while self._leaving and self._leaving[0][0] <= now:
            entry = heappop(self._leaving)[2]
            if self._waiting(entry):
                self._withdraw(entry.key)
                late.append(entry)
        return late

    def next_expiry(self) -> float | None:
        """When `expire` is next worth calling; None where nothing can expire."""
        while self._leaving and not self._waiting(self._leaving[0][2]):
            heappop(self._leaving)
        return self._leaving[0][0] if self._leaving else None

    def next_batch(self, now: float) -> Batch | None:
        """The batch to start now; None if nothing waits or compute is busy. Ask until None comes back.

        A lone image on an idle engine gets all threads, for the shortest answer. Otherwise the threads are
        shared out to streams, which together do more (1.15 to 1.34 times, measured on two cores), and what
        waits is shared out evenly among the free ones.
        """
        free_streams = self.limits.streams - len(self._running)
        free_threads = self.limits.threads - self._busy_threads
        if not self._queue or free_streams < 1 or free_threads < 1:
            return None
        alone = len(self._queue) == 1 and not self._running
        threads = free_threads if alone else min(self.limits.stream_threads, free_threads)
        sharing = min(free_streams, max(1, free_threads // threads))
        batch = self._take(threads, self._queue.work[self.depth] / sharing, now, alone=alone)
        self._running.append(batch)
        return batch

    def finished(self, batch: Batch) -> None:
        """Report a batch as computed (or failed): its threads are free again."""
        self._running.remove(batch)

    def relax(self, now: float) -> None:
        """Let the brown-out go back where load has fallen. Worth calling a few times a second."""
        self._brown_out.relax(self._queue.work, now)

    def wait_s(self, caller: str | None, priority: Priority, seconds: float, now: float) -> float:
        """How long a further image of that caller (None: of one who has nothing waiting) that takes so many
        seconds is predicted to wait, with all lowered that allow it."""
        return self._start(self._work_before(caller, priority, seconds, DEPTHS - 1), now) - now

    def running_s(self, now: float) -> float:
        """How long until a stream is free."""
        return self._start(0.0, now) - now

    def heaviest(self, number: int) -> list[tuple[str, Priority]]:
        """The callers with the most work waiting in each priority."""
        return self._queue.heaviest(number)

    @property
    def _busy_threads(self) -> int:
        return sum(batch.threads for batch in self._running)

    def _start(self, work: float, now: float) -> float:
        """When so many seconds of work will have been started, on all streams, after what is running."""
        free: list[float] = []
        for batch in self._running:
            free += [max(now, batch.ends)] * (batch.threads // self.limits.stream_threads)
        free = sorted(free + [now] * (self.limits.streams - len(free)))[: self.limits.streams]
        start, used = free[0], 1
        for ends in free[1:]:
            if (ends - start) * used >= work:
                break
            work -= (ends - start) * used
            start, used = ends, used + 1
        return start + work / used

    def _before(self, entry: Entry, depth: int, now: float) -> float:
        """Seconds of work that are served before it, in batches as large as `_take` makes them at least."""
        before = self._work_before(entry.caller, entry.priority, entry.seconds[depth], depth)
        return before * (1 + self.overhead_s / self._batch_s(entry, depth, now))

    def _work_before(self, caller: str | None, priority: Priority, seconds: float, depth: int) -> float:
        coming = {name: rate / self.limits.streams for name, rate in self._rates.items()}
        return self._queue.work_before(caller, priority, seconds, depth, coming)

    def _batch_s(self, entry: Entry, depth: int, now: float) -> float:
        """What a batch of images like it takes, beside the overhead: a full one, or what deadlines allow."""
        images = max(1, self.limits.batch_tokens // entry.tokens[depth])
        return batch_s(entry.seconds[depth], images, entry.deadline - now)

    def _mates_s(self, entry: Entry, own: int, before: float, now: float) -> float:
        """What it leaves to those behind it in its batch."""
        return mates_s(entry.seconds[own], self._batch_s(entry, own, now), before / self.limits.streams)

    def _wait(self, entry: Entry, depth: int, now: float) -> float:
        return self._start(self._before(entry, depth, now), now) - now

    def _own_s(self, entry: Entry, depth: int) -> float:
        """How long its own batch takes at least."""
        return entry.alone_s[depth] if self.idle else self.overhead_s + entry.seconds[depth]

    def _spare(self, entry: Entry, own: int, before: float, now: float) -> float:
        """How long it may wait, at that depth of its own, behind ``before`` seconds of work.

        Where there is a queue its batch will have others behind it, and shall not be cut short for it: a
        device may do ten times the work in full batches.
        """
        taken = self._mates_s(entry, own, before, now) + self._own_s(entry, own)
        return spare_s(entry.deadline - now, taken, self.caution, entry.wait_limit_s)

    def _place(self, entry: Entry, now: float) -> tuple[int, int] | None:
        """The least depth of brown-out under which the entry is in time, and under that the least of its own.
        None if it would be late under the deepest."""
        for depth in range(self.depth, DEPTHS):
            before = self._before(entry, depth, now)
            wait = self._start(before, now) - now
            for own in range(depth, DEPTHS):
                if wait <= self._spare(entry, own, before, now):
                    return depth, own
            if self._queue.work[depth] <= self._queue.work[-1]:  # a deeper one changes nothing
                break
        return None

    def _refusal(self, entry: Entry, now: float) -> Refusal:
        """Why it cannot be accepted, and when it could be."""
        deepest = DEPTHS - 1
        least = min(entry.alone_s[deepest], self.overhead_s + entry.seconds[deepest])
        if self.caution * least > entry.deadline - now:
            return Refusal("deadline-unmeetable", None)
        before = self._before(entry, deepest, now)
        spare = self._spare(entry, deepest, before, now)
        wait = self._start(before, now) - now
        reason: Reason = "deadline-unmeetable" if spare < entry.wait_limit_s else "queue-full"
        return Refusal(reason, max(0.0, wait - max(0.0, spare)))

    def _accept(self, entry: Entry, leaves: float) -> None:
        self._queue.add(entry)
        self._rates[entry.priority] += entry.seconds[self.depth] / _RATE_MEMORY_S
        self._tokens += entry.tokens[0]
        if leaves < float("inf"):
            self._accepted += 1
            heappush(self._leaving, (leaves, self._accepted, entry))
            # Entries that left otherwise stay behind until their time comes; not too many of them.
            if len(self._leaving) > 2 * len(self._queue) + 64:
                self._leaving = [item for item in self._leaving if self._waiting(item[2])]
                heapify(self._leaving)

    def _waiting(self, entry: Entry) -> bool:
        """Whether this very entry waits, not another that has got its key since."""
        return self._queue.get(entry.key) is entry

    def _withdraw(self, key: Hashable) -> Entry | None:
        entry = self._queue.remove(key)
        if entry is not None:
            self._tokens -= entry.tokens[0]
        return entry

    def _take(self, threads: int, share_s: float, now: float, *, alone: bool) -> Batch:
        """Entries in turn, at least one, within the token budget and the share of what waits.

        A batch ends early where one image more would make one in it late, but not before it is as large as
        its images left room for when they were accepted: those behind were accepted on that. Where every
        image that is in haste got a batch of its own, its overhead would make all the others late.
        """
        taken: list[Taken] = []
        tokens, work, room = 0, 0.0, float("inf")
        ends = now if alone else now + self.overhead_s
        soonest = float("inf")
        while (entry := self._queue.first()) is not None:
            seconds = entry.alone_s if alone else entry.seconds
            least = max(self.depth, entry.least_depth)
            found = self._in_time(entry.deadline, seconds, least, ends - now, now)
            depth = DEPTHS - 1 if found is None else found
            spent = work + seconds[depth]
            haste = found is None or self._late(soonest, ends - now + seconds[depth], now)
            if taken and (
                tokens + entry.tokens[depth] > self.limits.batch_tokens
                or spent > share_s * (1 + 1e-9)
                or (haste and spent > room)
            ):
                break
            taken.append(Taken(entry, depth, by_deadline=depth > self.depth))
            tokens += entry.tokens[depth]
            work = spent
            ends += seconds[depth]
            room = min(room, spent + min(entry.mates_s, _ENOUGH * self.overhead_s))
            if found is not None:  # nothing is to be won by haste for an image that is late all the same
                soonest = min(soonest, entry.deadline)
            self._queue.serve(entry, entry.seconds[depth])
            self._tokens -= entry.tokens[0]
        return Batch(tuple(taken), threads, ends)

    def _in_time(
        self, deadline: float, seconds: tuple[float, ...], least: int, before: float, now: float
    ) -> int | None:
        """The first depth at which a batch of ``before`` seconds with this entry meets its deadline."""
        depths = range(least, DEPTHS)
        return next((d for d in depths if not self._late(deadline, before + seconds[d], now)), None)

    def _late(self, deadline: float, seconds: float, now: float) -> bool:
        return now + self.caution * seconds > deadline
