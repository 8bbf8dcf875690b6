"""Decides which images are accepted, which are computed together, when, at which depth of a brown-out and on
how many threads. Pure policy: no clock, no sockets, no torch. The caller passes ``now`` (seconds, any
monotonic origin), does what is returned, and reports back.

There is no timer that waits for more images: a batch is formed whenever compute is free, so batches grow by
themselves under load. The budget of a batch is in tokens weighted by cost, so pruned images, which cost less,
come in larger batches of about the same duration. A batch ends early if one more image would make an image in
it late.

Above 300 lines: what is here reads and changes the queue and the brown-out together. What does not is in
admission.py, fair_queue.py, brown_out.py and batches.py.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from app.dispatch.policy.admission import Ahead, Place, Refusal, Streams, Wanted, ahead_of, place_of, refusal
from app.dispatch.policy.batches import Batch, QueueLimits, Taken, WorkerLane
from app.dispatch.policy.brown_out import DEPTHS, BrownOut
from app.dispatch.policy.fair_queue import WEIGHTS, Entry, FairQueue
from app.priority import Priority

# A caller may hold this many times the free places of the queue: three quarters of all places if it is the
# only one. There is always a free place for a new caller (Choudhury and Hahne 1998, dynamic thresholds).
_TIMES_FREE = 3
# At this interval, an idle worker takes an image whose deadline it is predicted to miss. A wrong prediction
# can only be corrected by computing something.
_PROBE_EVERY_S = 1.0
# Ratios are not lowered early while the wait is below this share of the allowed wait.
_COMFORT = 0.25

# A batch whose work is this many times its overhead is large enough: a larger one would save little more.
_ENOUGH = 10.0
_RATE_MEMORY_S = 10.0


@dataclass(slots=True)
class Scheduler:
    """Fair shares for priorities and callers, in batches, with deadlines that are met by prediction.

    It must have at least one worker while it is used: see `join`. ``caution`` is the factor by which a
    batch's prediction is multiplied for promises. The owner of the predictions keeps it, and each
    `WorkerLane`'s rates, up to date (`refresh`). ``streams``: the maximum number of batches that run at the
    same time, on all workers. ``batch_tokens``: those of a full batch, at the worker with the smallest limit.
    ``overheads_s``: the overhead of a batch of each model, on average over the streams.
    """

    limits: QueueLimits
    caution: float = 1.0
    workers: dict[int, WorkerLane] = field(default_factory=dict)
    streams: int = field(default=0, init=False)
    batch_tokens: int = field(default=1, init=False)
    overheads_s: dict[str, float] = field(default_factory=dict, init=False)
    _queue: FairQueue = field(default_factory=lambda: FairQueue(DEPTHS))
    _brown_out: BrownOut = field(default_factory=lambda: BrownOut(1))
    _tokens: int = 0
    _leaving: list[tuple[float, int, Entry]] = field(default_factory=list)
    _accepted: int = 0
    _probed: float = float("-inf")
    # Rate of accepted work (seconds per second) in each priority, to predict what will arrive.
    _rates: dict[Priority, float] = field(default_factory=lambda: dict.fromkeys(WEIGHTS, 0.0))
    _rates_at: float = float("-inf")
    _ends: list[float] | None = None  # end times of the running batches, ascending; None if they have changed

    def __repr__(self) -> str:
        running = sum(len(worker.running) for worker in self.workers.values())
        busy = sum(worker.busy_threads for worker in self.workers.values())
        threads = sum(worker.limits.threads for worker in self.workers.values())
        return (
            f"<Scheduler {self.waiting_images} waiting ({self.waiting_tokens} tokens), "
            f"{running} running on {busy} of {threads} threads, brown-out {self.depth}>"
        )

    def join(self, name: int, worker: WorkerLane) -> None:
        """Add a worker that can compute from now on."""
        self.workers[name] = worker
        self.refresh()

    def leave(self, name: int) -> None:
        """Remove a worker, with the batches that it was computing."""
        del self.workers[name]
        self.refresh()

    def refresh(self) -> None:
        """Update after a change of a `WorkerLane`."""
        streams = 0
        overheads: dict[str, float] = {}
        smallest: int | None = None
        for lane in self.workers.values():
            limits = lane.limits
            streams += limits.streams
            for model, rates in lane.rates.items():
                overheads[model] = overheads.get(model, 0.0) + rates.overhead_s * limits.streams
            if smallest is None or limits.batch_tokens < smallest:
                smallest = limits.batch_tokens
        self.streams = streams
        self.batch_tokens = 1 if smallest is None else smallest
        self.overheads_s = {model: overhead / max(1, streams) for model, overhead in overheads.items()}
        self._brown_out.streams = max(1, self.streams)
        self._ends = None

    @property
    def waiting_images(self) -> int:
        """The number of images in the queue."""
        return len(self._queue)

    @property
    def waiting_tokens(self) -> int:
        """Their weight, as requested."""
        return self._tokens

    @property
    def waiting_s(self) -> float:
        """Their predicted compute, in seconds of one stream."""
        return self._queue.work[self.depth]

    @property
    def depth(self) -> int:
        """The depth of the brown-out; 0 if there is none."""
        return self._brown_out.depth

    @property
    def running(self) -> bool:
        """Whether a batch is being computed."""
        for worker in self.workers.values():  # noqa: SIM110 - it is asked twice a turn
            if worker.running:
                return True
        return False

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._queue and not self.running

    def submit(self, entry: Entry, now: float) -> Refusal | None:
        """Queue an entry. Returns a Refusal if the queue is full, or if the entry is predicted to be late
        even if all images that allow it are lowered. Raises ValueError if its key is already waiting."""
        if entry.key in self._queue:
            raise ValueError(f"{entry.key!r} is already waiting")
        self._brown_out.offered(entry.seconds, now)
        self._forget_rates(now)
        self.relax(now)
        streams = self.streams_at(entry.model, now)
        free = self.limits.images - len(self._queue)
        if self._queue.held_by(entry.caller) >= _TIMES_FREE * free:
            wanted = self._wanted(entry, self.depth, now)
            return Refusal("queue-full", self._ahead(entry, wanted, self.depth, streams).wait_s)
        found = self._place(entry, streams, now)
        if isinstance(found, Refusal):
            if not streams.idle or now < self._probed + _PROBE_EVERY_S:
                return found
            self._probed = now
            self._accept(entry.at_least(DEPTHS - 1), entry.deadline)
            return None
        depth, own, place = found
        self._brown_out.deepen(depth, place.wait_s, now)
        if place.wait_s > _COMFORT * place.spare_s:
            self._brown_out.press(place.wait_s, now)
        lowered = entry.at_least(own if own > depth else 0)
        self._accept(lowered.leaving(place.batch_slack_s), self._hopeless_at(lowered))
        return None

    def readmit(self, entry: Entry, now: float) -> None:
        """Queue an entry that was accepted before, by another worker or dispatcher: promises are kept if its
        deadline allows it. Raises ValueError if its key is already waiting."""
        self._brown_out.offered(entry.seconds, now)
        self._forget_rates(now)
        self._accept(entry, self._hopeless_at(entry))

    def cancel(self, key: Hashable) -> bool:
        """Remove a waiting entry. Returns False if it is not waiting (unknown, running or done)."""
        return self._withdraw(key) is not None

    def expire(self, now: float) -> list[Entry]:
        """Remove and return all entries that can no longer be computed before their deadline."""
        late = []
        while self._leaving and self._leaving[0][0] <= now:
            entry = heappop(self._leaving)[2]
            if self._waiting(entry):
                self._withdraw(entry.key)
                late.append(entry)
        return late

    def next_expiry(self) -> float | None:
        """When to call `expire` next. None if nothing can expire."""
        while self._leaving and not self._waiting(self._leaving[0][2]):
            heappop(self._leaving)
        return self._leaving[0][0] if self._leaving else None

    def entries(self) -> list[Entry]:
        """Remove and return all waiting entries, in the order of their arrival."""
        found = sorted(self._queue, key=lambda entry: entry.arrived)
        for entry in found:
            self._withdraw(entry.key)
        return found

    def next_batch(self, now: float) -> Batch | None:
        """The batch to start now. None if nothing waits or no stream is free. Call it until it returns None.

        It goes to the least loaded worker that has a free stream, and among equals to the fastest. A single
        image on an idle worker gets all threads, for the shortest latency. Otherwise the threads are divided
        among the streams, which together do more (1.15 to 1.34 times, measured on two cores), and the waiting
        images are divided evenly among the free ones.
        """
        if not self._queue or (name := self._free_worker()) is None:
            return None
        worker = self.workers[name]
        alone = len(self._queue) == 1 and not worker.running
        threads = worker.limits.threads if alone else worker.limits.stream_threads
        sharing = sum(lane.free_streams for lane in self.workers.values() if lane.accepting)
        batch = self._take(name, threads, self._queue.work[self.depth] / sharing, now, alone=alone)
        worker.running.append(batch)
        self._ends = None
        return batch

    def finished(self, batch: Batch) -> None:
        """Report a batch as computed (or failed): its threads are free again."""
        self.workers[batch.worker].running.remove(batch)
        self._ends = None

    def least_loaded(self) -> int:
        """The worker with the least running, and among equals the fastest."""
        return min(self.workers, key=self._load_of)

    def relax(self, now: float) -> None:
        """Let the brown-out decrease if the load has fallen. Call it a few times a second."""
        if self._brown_out.depth:
            self._brown_out.relax(self._queue.work, now)

    def work_before(self, caller: str | None, priority: Priority, seconds: float, now: float) -> float:
        """The seconds of work that are served before another image of that caller with this many seconds, if
        all images that allow it are lowered. None: a caller who has nothing waiting."""
        self._forget_rates(now)
        return self._work_before(caller, priority, seconds, DEPTHS - 1)

    def overhead_s(self, model: str) -> float:
        """The overhead of a batch of that model."""
        return self.overheads_s.get(model, 0.0)

    def streams_at(self, model: str, now: float) -> Streams:
        """The streams as admission needs them, for an image of that model."""
        if self._ends is None:
            self._ends = []
            for worker in self.workers.values():
                if worker.running:
                    self._ends += worker.ends
            self._ends.sort()
        busy = [max(0.0, ends - now) for ends in self._ends]
        free_in_s = [0.0] * (self.streams - len(busy)) + busy
        return Streams(free_in_s, self.idle, self.overhead_s(model), self.caution)

    def heaviest(self, number: int) -> list[tuple[str, Priority]]:
        """The callers with the most work waiting in each priority."""
        return self._queue.heaviest(number)

    def _load_of(self, name: int) -> tuple[float, float]:
        worker = self.workers[name]
        return len(worker.running) / worker.limits.streams, worker.pace

    def _free_worker(self) -> int | None:
        free = [name for name, worker in self.workers.items() if worker.accepting and worker.free_streams > 0]
        if len(free) < 2:
            return free[0] if free else None
        return min(free, key=self._load_of)

    def _work_before(self, caller: str | None, priority: Priority, seconds: float, depth: int) -> float:
        if not self._queue:
            return 0.0
        coming = {name: rate / self.streams for name, rate in self._rates.items()}
        return self._queue.work_before(caller, priority, seconds, depth, coming)

    def _forget_rates(self, now: float) -> None:
        """Forget what was accepted long ago, which does not predict what will come."""
        if now > self._rates_at:
            passed = math.exp((self._rates_at - now) / _RATE_MEMORY_S)
            for name in self._rates:
                self._rates[name] *= passed
            self._rates_at = now

    def _wanted(self, entry: Entry, depth: int, now: float) -> Wanted:
        """What the entry needs at that depth of its own."""
        return Wanted(
            entry.seconds[depth],
            entry.alone_s[depth],
            max(1, self.batch_tokens // entry.tokens[depth]),
            entry.deadline - now,
            entry.wait_limit_s,
        )

    def _ahead(self, entry: Entry, wanted: Wanted, depth: int, streams: Streams) -> Ahead:
        """What is served before the entry, if all images that allow it are lowered to that depth."""
        work_s = self._work_before(entry.caller, entry.priority, wanted.seconds, depth)
        return ahead_of(wanted, work_s, streams)

    def _place(self, entry: Entry, streams: Streams, now: float) -> tuple[int, int, Place] | Refusal:
        """The lowest depth of the brown-out at which the entry is in time, the lowest depth of its own with
        that, and its place then. A Refusal if it would be late even at the deepest."""
        for depth in range(self.depth, DEPTHS):
            wanted = self._wanted(entry, depth, now)
            ahead = self._ahead(entry, wanted, depth, streams)
            for own in range(depth, DEPTHS):
                if own > depth:
                    wanted = self._wanted(entry, own, now)
                place = place_of(wanted, ahead, streams)
                if place.is_in_time:
                    return depth, own, place
                if entry.seconds[own] <= entry.seconds[-1]:  # a greater depth changes nothing
                    break
            if self._queue.work[depth] <= self._queue.work[-1]:  # a greater depth frees nothing
                break
        # Batches of images that are lowered as far as this one may be even larger than those tried above.
        wanted = self._wanted(entry, DEPTHS - 1, now)
        ahead = self._ahead(entry, wanted, DEPTHS - 1, streams)
        return refusal(wanted, ahead, streams) or (
            self.depth,
            DEPTHS - 1,
            place_of(wanted, ahead, streams),
        )

    def _hopeless_at(self, entry: Entry) -> float:
        """When the entry can no longer be computed in time. It is given up then, so that it does not delay
        others."""
        return entry.deadline - min(entry.alone_s[-1], self.overhead_s(entry.model) + entry.seconds[-1])

    def _accept(self, entry: Entry, leaves: float) -> None:
        self._queue.add(entry)
        self._rates[entry.priority] += entry.seconds[self.depth] / _RATE_MEMORY_S
        self._tokens += entry.tokens[0]
        if leaves < float("inf"):
            self._accepted += 1
            heappush(self._leaving, (leaves, self._accepted, entry))
            # Entries that left in another way stay here until their time comes, but only a limited number.
            if len(self._leaving) > 2 * len(self._queue) + 64:
                self._leaving = [item for item in self._leaving if self._waiting(item[2])]
                heapify(self._leaving)

    def _waiting(self, entry: Entry) -> bool:
        """Whether this very entry waits, and not another one with the same key."""
        return self._queue.get(entry.key) is entry

    def _withdraw(self, key: Hashable) -> Entry | None:
        entry = self._queue.remove(key)
        if entry is not None:
            self._tokens -= entry.tokens[0]
        return entry

    def _take(self, name: int, threads: int, share_s: float, now: float, *, alone: bool) -> Batch:
        """The next entries in turn, at least one, all of the model of the first, within the token budget and
        the share of the waiting images.

        A batch ends early if one more image would make an image in it late, but not before it is as large as
        its images left room for when they were accepted, because images behind them were accepted on that
        basis. If every urgent image got a batch of its own, the overhead would make all the others late.
        """
        entry = self._queue.first()
        assert entry is not None
        worker, model = self.workers[name], entry.model
        rates = worker.rates_of(model)
        pace = rates.alone_pace if alone else rates.pace
        taken: list[Taken] = []
        tokens, work, room = 0, 0.0, float("inf")
        ends = now if alone else now + rates.overhead_s
        soonest = float("inf")
        while entry is not None:
            seconds = entry.alone_s if alone else entry.seconds
            least = max(self.depth, entry.least_depth)
            found = self._in_time(entry.deadline, seconds, pace, least, ends - now, now)
            depth = DEPTHS - 1 if found is None else found
            spent = work + seconds[depth]
            haste = found is None or self._late(soonest, ends - now + pace * seconds[depth], now)
            if taken and (
                tokens + entry.tokens[depth] > worker.limits.batch_tokens
                or spent > share_s * (1 + 1e-9)
                or (haste and spent > room)
            ):
                break
            taken.append(Taken(entry, depth, by_deadline=depth > self.depth))
            tokens += entry.tokens[depth]
            work = spent
            ends += pace * seconds[depth]
            room = min(room, spent + min(entry.batch_slack_s, _ENOUGH * rates.overhead_s))
            if found is not None:  # an image that is late anyway gains nothing from a shorter batch
                soonest = min(soonest, entry.deadline)
            self._queue.serve(entry, entry.seconds[depth])
            self._tokens -= entry.tokens[0]
            entry = self._queue.first(model)
        return Batch(name, tuple(taken), threads, ends)

    def _in_time(
        self,
        deadline: float,
        seconds: tuple[float, ...],
        pace: float,
        least: int,
        before: float,
        now: float,
    ) -> int | None:
        """The lowest depth at which a batch of ``before`` seconds together with this entry meets its
        deadline."""
        for depth in range(least, DEPTHS):
            if not self._late(deadline, before + pace * seconds[depth], now):
                return depth
        return None

    def _late(self, deadline: float, seconds: float, now: float) -> bool:
        return now + self.caution * seconds > deadline
