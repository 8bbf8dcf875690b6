"""Entries for the tests of queue and scheduler."""

from collections.abc import Hashable
from dataclasses import dataclass

from app.dispatch.policy.admission import starts_in
from app.dispatch.policy.batches import QueueLimits, Rates, WorkerLane
from app.dispatch.policy.brown_out import DEPTHS
from app.dispatch.policy.fair_queue import Entry
from app.dispatch.policy.scheduler import Scheduler
from app.messages.capacity import Limits
from app.priority import Priority

INFINITE = float("inf")
MODELS = ("", "other")  # that the worker holds


def entry(
    key: Hashable,
    tokens: int = 10,
    seconds: float | None = None,
    *,
    falls: float = 0.0,
    alone_s: float | None = None,
    arrived: float = 0.0,
    deadline: float = INFINITE,
    wait_limit_s: float = INFINITE,
    caller: str = "",
    priority: Priority = "normal",
    model: str = "",
) -> Entry:
    """An image that takes as many milliseconds as it has tokens, unless told otherwise; by every depth of a
    brown-out it ``falls`` by that share of both."""
    seconds = tokens / 1000 if seconds is None else seconds
    alone_s = seconds if alone_s is None else alone_s
    shares = [1 - falls * depth for depth in range(DEPTHS)]
    return Entry(
        key,
        tuple(max(1, round(tokens * share)) for share in shares),
        tuple(seconds * share for share in shares),
        tuple(alone_s * share for share in shares),
        arrived,
        deadline,
        wait_limit_s,
        caller,
        priority,
        model=model,
    )


@dataclass(frozen=True, slots=True)
class Sizes:
    """The limits of a queue and of the one worker behind it."""

    batch_tokens: int
    queue_images: int
    threads: int
    streams: int
    queue_s: float = 10.0

    @property
    def worker(self) -> Limits:
        return Limits(self.batch_tokens, self.threads, self.streams)

    @property
    def stream_threads(self) -> int:
        return self.worker.stream_threads

    def scheduler(self, overhead_s: float = 0.0, caution: float = 1.0) -> Scheduler:
        made = Scheduler(QueueLimits(self.queue_images, self.queue_s), caution)
        made.join(1, WorkerLane(self.worker, {model: Rates(overhead_s) for model in MODELS}))
        return made


def wait_s(scheduler: Scheduler, caller: str | None, priority: Priority, seconds: float, now: float) -> float:
    """How long a further image of that caller is predicted to wait."""
    work_s = scheduler.work_before(caller, priority, seconds, now)
    return starts_in(work_s, scheduler.streams_at("", now).free_in_s)
