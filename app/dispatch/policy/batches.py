"""Inputs and outputs of the scheduler: limits, batches, and the state of each worker. Pure."""

from dataclasses import dataclass, field

import msgspec

from app.dispatch.policy.fair_queue import Entry
from app.messages.capacity import Limits


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How many images may wait, and the maximum predicted wait of an image without a deadline of its own."""

    images: int
    wait_s: float = 10.0

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"limits must be at least 1: {self}")
        if not self.wait_s > 0:
            raise ValueError(f"wait_s must be above 0, got {self.wait_s}")


class Taken(msgspec.Struct, frozen=True):
    """An entry of a batch, the brown-out depth whose ratio it gets, and whether its own deadline required
    that depth."""

    entry: Entry
    depth: int
    by_deadline: bool

    @property
    def tokens(self) -> int:
        """Its weight at that depth."""
        return self.entry.tokens[self.depth]


class Batch(msgspec.Struct, frozen=True):
    """Entries of one model that a worker computes together on ``threads`` threads, predicted to end at
    ``ends``."""

    worker: int
    taken: tuple[Taken, ...]
    threads: int
    ends: float

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries."""
        return tuple(taken.entry for taken in self.taken)

    @property
    def model(self) -> str:
        """The model of the entries."""
        return self.taken[0].entry.model

    @property
    def tokens(self) -> int:
        """The weight of the whole batch."""
        return sum(taken.tokens for taken in self.taken)


class Rates(msgspec.Struct, frozen=True):
    """How one worker computes one model: the overhead of a batch, and the factors between its time for an
    image and the predicted one, in a batch and alone."""

    overhead_s: float = 0.0
    pace: float = 1.0
    alone_pace: float = 1.0


_UNKNOWN = Rates()


@dataclass(slots=True)
class WorkerLane:
    """The scheduler's state of one worker, with its ``rates`` by model. One that is not ``accepting`` gets no
    batch."""

    limits: Limits
    rates: dict[str, Rates] = field(default_factory=dict)
    accepting: bool = True
    running: list[Batch] = field(default_factory=list)

    def rates_of(self, model: str) -> Rates:
        """The rates of that model."""
        return self.rates.get(model, _UNKNOWN)

    @property
    def pace(self) -> float:
        """The mean over the models, for when it is not known which one comes next."""
        return sum(each.pace for each in self.rates.values()) / max(1, len(self.rates))

    @property
    def busy_threads(self) -> int:
        """The threads of running batches."""
        return sum(batch.threads for batch in self.running)

    @property
    def free_streams(self) -> int:
        """How many batches could be started now, by number and by threads."""
        free_threads = self.limits.threads - self.busy_threads
        return min(self.limits.streams - len(self.running), free_threads // self.limits.stream_threads)

    @property
    def ends(self) -> list[float]:
        """When each busy stream is predicted to be free."""
        streams = self.limits.streams
        busy: list[float] = []
        for batch in self.running:
            busy += [batch.ends] * (batch.threads // self.limits.stream_threads)
        return sorted(busy)[:streams]
