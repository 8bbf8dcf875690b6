"""The scheduler driven through hours of made-up time, with batch durations that were measured.

Durations come from ``recorded_costs.json``: between its points per-image times are interpolated, and every
batch gets some noise, some a lot. The scheduler knows none of this: its cost model learns from a warm-up of
such batches, and goes on learning, as the dispatcher's does. What happens in app.dispatch.dispatcher between
the scheduler and the world happens here between the scheduler and a heap of events.
"""

import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from heapq import heappop, heappush
from pathlib import Path

import numpy as np

from app.dispatch.policy.admission import Refusal
from app.dispatch.policy.batches import Batch, Rates
from app.dispatch.policy.brown_out import ratios
from app.dispatch.policy.cost import CostModel
from app.dispatch.policy.fair_queue import Entry
from app.dispatch.policy.scheduler import Scheduler
from app.messages.capacity import Measured, Work
from app.priority import Priority
from models.schedule import Architecture, Stages, compute
from tests.app.dispatch.policy.entries import Sizes

ARCH = Architecture(
    depth=12, dim=384, mlp_dim=1536, grid=(16, 16), prefix_tokens=1, patch_inputs=588, classes=10
)
STAGES = Stages((3, 6, 9))
TOKENS = ARCH.patches + ARCH.prefix_tokens
# Two streams of one thread do 1.15 to 1.34 times the work of one with two (docs/design/0003).
STREAM_SLOWER = 2 / 1.2
LIMITS = Sizes(batch_tokens=4096, queue_images=1024, threads=2, streams=2)


@dataclass(frozen=True, slots=True)
class Request:
    """One image that somebody asks about. ``gives_up_s``: when its client goes away without an answer."""

    at: float
    keep_ratio: float = 1.0
    floor: float | None = None
    deadline_s: float | None = None
    caller: str = ""
    priority: Priority = "normal"
    gives_up_s: float = math.inf


@dataclass(slots=True)
class Outcome:
    """How a request ended: exactly one of these is set at the end."""

    request: Request
    refused: Refusal | None = None
    answered_at: float | None = None
    expired_at: float | None = None
    gone_at: float | None = None
    keep_ratio: float = 0.0
    by_deadline: bool = False

    @property
    def ends(self) -> int:
        """In how many ways it ended."""
        return sum(end is not None for end in (self.refused, self.answered_at, self.expired_at, self.gone_at))

    @property
    def accepted(self) -> bool:
        return self.refused is None

    @property
    def in_time(self) -> bool:
        """Whether it was answered by its deadline."""
        if self.answered_at is None:
            return False
        return self.request.deadline_s is None or self.took_s <= self.request.deadline_s

    @property
    def took_s(self) -> float:
        """From asking to the answer."""
        assert self.answered_at is not None
        return self.answered_at - self.request.at


class Device:
    """How long batches really take: as they were measured, times ``scale``, with noise.

    Some are held up and take four times as long. ``overhead_s`` is what every batch costs besides.
    """

    def __init__(
        self,
        seed: int,
        scale: float = 1.0,
        noise: float = 0.05,
        outliers: float = 0.001,
        overhead_s: float = 0.0,
    ) -> None:
        recorded = json.loads((Path(__file__).parent / "recorded_costs.json").read_text())["batches"]
        self._sizes = sorted({batch["images"] for batch in recorded})
        self._per_image = {
            size: sorted(
                (batch["compute"], batch["seconds"] / size) for batch in recorded if batch["images"] == size
            )
            for size in self._sizes
        }
        self._draw = random.Random(seed)
        self.scale, self._noise, self._outliers, self._overhead_s = scale, noise, outliers, overhead_s

    def seconds(self, shares: list[float], threads: int) -> float:
        """Of a batch with these shares of compute."""
        slower = STREAM_SLOWER if threads < LIMITS.threads else 1.0
        exact = sum(self._image_s(len(shares), share) for share in shares)
        noise = math.exp(self._draw.gauss(0, self._noise))
        held_up = 4.0 if self._draw.random() < self._outliers else 1.0
        return (exact * self.scale + self._overhead_s) * slower * noise * held_up

    @cache  # noqa: B019
    def _image_s(self, size: int, share: float) -> float:
        at_sizes = [
            float(np.interp(share, *zip(*self._per_image[known], strict=True))) for known in self._sizes
        ]
        return float(np.interp(math.log(size), [math.log(known) for known in self._sizes], at_sizes))

    def warm_up(self) -> CostModel:
        """What a worker measures before it is ready."""
        measured = []
        for ratio in (1.0, 0.7, 0.5, 0.3):
            share = compute(ARCH, STAGES, ratio)
            for size, threads in ((1, 2), (1, 2), (1, 1), (1, 1), (4, 1), (4, 1), (15, 1), (15, 1)):
                work = Work(size, size * share)
                measured.append(Measured(threads, work, self.seconds([share] * size, threads)))
        return CostModel.learned(measured)


@dataclass(slots=True)
class Simulation:
    """One worker under a stream of requests."""

    device: Device
    limits: Sizes = LIMITS
    scheduler: Scheduler = field(init=False)
    costs: CostModel = field(init=False)
    outcomes: list[Outcome] = field(default_factory=list)
    depths: list[tuple[float, int]] = field(default_factory=list)  # when the brown-out changed, and to what
    errors: list[float] = field(default_factory=list)
    _events: list[tuple[float, int, object]] = field(default_factory=list)
    _number: int = 0
    _timer: float = -math.inf

    def __post_init__(self) -> None:
        self.costs = self.device.warm_up()
        self.scheduler = self.limits.scheduler()
        self._predict()

    def run(self, requests: Iterable[Request]) -> list[Outcome]:
        """Until all that was asked has ended. Requests must be in order of time."""
        coming: Iterator[Request] = iter(requests)
        following = next(coming, None)
        now = 0.0
        while following is not None or self._events:
            if following is not None and (not self._events or following.at <= self._events[0][0]):
                now, event = following.at, following
                following = next(coming, None)
            else:
                now, _, event = heappop(self._events)  # type: ignore[assignment]
            self._happens(event, now)
            for entry in self.scheduler.expire(now):
                self.outcomes[entry.key].expired_at = now  # type: ignore[call-overload]
            self.scheduler.relax(now)
            while (batch := self.scheduler.next_batch(now)) is not None:
                self._start(batch, now)
            due = self.scheduler.next_expiry()
            if due is not None and (due < self._timer or self._timer <= now):
                self._timer = due
                self._later(max(now, due), None)
            if not self.depths or self.depths[-1][1] != self.scheduler.depth:
                self.depths.append((now, self.scheduler.depth))
        assert self.scheduler.idle
        return self.outcomes

    def _happens(self, event: object, now: float) -> None:
        match event:
            case Request():
                self._ask(event, now)
            case (Batch() as batch, float() as seconds, Work() as work):
                self.scheduler.finished(batch)
                for taken in batch.taken:
                    outcome = self.outcomes[taken.entry.key]  # type: ignore[call-overload]
                    if outcome.gone_at is None:
                        outcome.answered_at = now
                self.errors.append(abs(self.costs.observe(Measured(batch.threads, work, seconds))))
                self._predict()
            case int() as key:
                outcome = self.outcomes[key]
                if outcome.ends == 0:
                    self.scheduler.cancel(key)
                    outcome.gone_at = now

    def _ask(self, request: Request, now: float) -> None:
        outcome = Outcome(request)
        key = len(self.outcomes)
        self.outcomes.append(outcome)
        shares = [compute(ARCH, STAGES, ratio) for ratio in ratios(request.keep_ratio, request.floor)]
        entry = Entry(
            key,
            tuple(max(1, round(TOKENS * share)) for share in shares),
            tuple(self.costs.image_s(share, self.limits.stream_threads) for share in shares),
            tuple(self.costs.predict(Work(1, share), self.limits.threads) for share in shares),
            now,
            now + (request.deadline_s or 30.0),
            math.inf if request.deadline_s is not None else self.limits.queue_s,
            request.caller,
            request.priority,
        )
        outcome.refused = self.scheduler.submit(entry, now)
        if outcome.refused is None and request.gives_up_s < math.inf:
            self._later(now + request.gives_up_s, key)

    def _start(self, batch: Batch, now: float) -> None:
        shares = []
        for taken in batch.taken:
            outcome = self.outcomes[taken.entry.key]  # type: ignore[call-overload]
            assert outcome.ends == 0, "computed although it had ended"
            asked = outcome.request
            outcome.keep_ratio = ratios(asked.keep_ratio, asked.floor)[taken.depth]
            outcome.by_deadline = taken.by_deadline
            shares.append(compute(ARCH, STAGES, outcome.keep_ratio))
        seconds = self.device.seconds(shares, batch.threads)
        self._later(now + seconds, (batch, seconds, Work(len(shares), sum(shares))))

    def _later(self, at: float, event: object) -> None:
        self._number += 1
        heappush(self._events, (at, self._number, event))

    def _predict(self) -> None:
        overhead_s = self.costs.overhead_s(self.limits.stream_threads)
        self.scheduler.workers[1].rates[""] = Rates(overhead_s)
        self.scheduler.refresh()
        self.scheduler.caution = self.costs.caution


def poisson(rate: float, start: float, end: float, seed: int, like: Request) -> list[Request]:
    """Requests like that one at random times, so many a second on average."""
    draw = random.Random(seed)
    requests = []
    at = start + draw.expovariate(rate)
    while at < end:
        requests.append(replace(like, at=at))
        at += draw.expovariate(rate)
    return requests


def merged(*streams: list[Request]) -> list[Request]:
    """All requests in order of time."""
    return sorted((request for stream in streams for request in stream), key=lambda request: request.at)


def capacity(keep_ratio: float, scale: float = 1.0) -> float:
    """Images a second in full batches on both streams."""
    share = compute(ARCH, STAGES, keep_ratio)
    device = Device(0, scale, noise=0.0, outliers=0.0)
    size = 4096 // max(1, round(TOKENS * share))
    return LIMITS.streams * size / device.seconds([share] * size, 1)
