"""What an image will take, predicted for all workers together, from what each of them measured. Pure.

A queue before several workers needs one figure for an image's seconds, whoever will compute it: the mean with
which the queue's throughput comes out right. How a worker differs from it is the worker's pace. With one
worker, or several equal ones, every pace is 1.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

import msgspec

from app.dispatch.policy.brown_out import DEPTHS
from app.dispatch.policy.cost import CostModel
from app.dispatch.policy.fair_queue import Entry
from app.dispatch.policy.scheduler import Scheduler
from app.dispatch.policy.shares import shares, tokens
from app.messages.capacity import Limits, Measured
from app.messages.image import Ask
from app.messages.model import ModelInfo
from app.messages.to_dispatcher import Record

_MOST_REMEMBERED = 4096  # clients choose the ratios


class Line(msgspec.Struct, frozen=True):
    """Seconds that follow from a share of compute: ``constant_s`` and, times the share, ``compute_s``."""

    constant_s: float
    compute_s: float

    def at(self, share: float) -> float:
        """The seconds."""
        return self.constant_s + self.compute_s * share

    @property
    def unpruned_s(self) -> float:
        """Of an image that is not pruned."""
        return self.constant_s + self.compute_s


_UNKNOWN = Line(0.0, 1.0)


@dataclass(slots=True)
class _Worker:
    limits: Limits
    costs: CostModel
    in_batch: Line = _UNKNOWN
    alone: Line = _UNKNOWN

    def predict(self) -> float:
        """Bring both lines up to date; gives back the overhead of a batch."""
        overhead, image, compute = self.costs.line(self.limits.stream_threads)
        self.in_batch = Line(image, compute)
        constant, image, compute = self.costs.line(self.limits.threads)
        self.alone = Line(constant + image, compute)
        return overhead


@dataclass(slots=True)
class Predictions:
    """Keeps a scheduler's view of its workers up to date with what they take.

    ``in_batch`` is what an image takes in a batch on one stream, ``alone`` what it takes by itself on idle
    workers.
    """

    scheduler: Scheduler
    in_batch: Line = _UNKNOWN
    alone: Line = _UNKNOWN
    _workers: dict[int, _Worker] = field(default_factory=dict)
    _model: ModelInfo | None = None
    _weights: dict[Ask, tuple[tuple[float, ...], tuple[int, ...]]] = field(default_factory=dict)

    def join(self, name: int, limits: Limits, measured: tuple[Measured, ...]) -> None:
        """A worker that the scheduler has, with what it measured at its start."""
        self._workers[name] = _Worker(limits, CostModel.learned(measured))
        self._predict()

    def leave(self, name: int) -> None:
        """It is gone."""
        del self._workers[name]
        if self._workers:
            self._predict()

    def observe(self, name: int, measured: Measured) -> float:
        """Learn from a batch of that worker. Gives back the relative error of what was predicted for it."""
        error = self._workers[name].costs.observe(measured)
        self._predict()
        return error

    def entry(self, key: Hashable, record: Record, info: ModelInfo, now: float, deadline: float) -> Entry:
        """The image as the scheduler knows it, with what it is predicted to cost."""
        at_depths, weights = self._weights_of(info, record.ask)
        limit_s = math.inf if record.own_deadline else self.scheduler.limits.wait_s
        if record.ask.min_keep_ratio is None:  # it cannot be lowered: all depths are alike
            seconds = (self.in_batch.at(at_depths[0]),) * DEPTHS
            alone_s = (self.alone.at(at_depths[0]),) * DEPTHS
        else:
            seconds = tuple(map(self.in_batch.at, at_depths))
            alone_s = tuple(map(self.alone.at, at_depths))
        return Entry(
            key=key,
            tokens=weights,
            seconds=seconds,
            alone_s=alone_s,
            arrived=now,
            deadline=deadline,
            wait_limit_s=limit_s,
            caller=record.caller,
            priority=record.priority,
        )

    def _weights_of(self, info: ModelInfo, ask: Ask) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """What the image costs at every depth, as shares of compute and in tokens, remembered for a model."""
        if info is not self._model or len(self._weights) >= _MOST_REMEMBERED:
            self._model = info
            self._weights.clear()
        found = self._weights.get(ask)
        if found is None:
            at_depths = shares(info, ask)
            found = at_depths, tuple(tokens(info, share) for share in at_depths)
            self._weights[ask] = found
        return found

    def _predict(self) -> None:
        if len(self._workers) == 1:  # as below, where all paces are 1
            ((name, only),) = self._workers.items()
            lane = self.scheduler.workers[name]
            lane.overhead_s = only.predict()
            lane.pace = lane.alone_pace = 1.0
            self.in_batch, self.alone = only.in_batch, only.alone
            self.scheduler.caution = only.costs.caution
            self.scheduler.refresh()
            return
        overheads = {name: worker.predict() for name, worker in self._workers.items()}
        self._predict_for_all()
        unpruned_s, alone_s = self.in_batch.unpruned_s, self.alone.unpruned_s
        caution = 1.0
        for name, worker in self._workers.items():
            lane = self.scheduler.workers[name]
            lane.overhead_s = overheads[name]
            lane.pace = worker.in_batch.unpruned_s / unpruned_s
            lane.alone_pace = worker.alone.unpruned_s / alone_s
            caution = max(caution, worker.costs.caution)
        self.scheduler.caution = caution
        self.scheduler.refresh()

    def _predict_for_all(self) -> None:
        """One line for several workers: the mean with which the queue's throughput comes out right."""
        workers = self._workers.values()
        streams = sum(worker.limits.streams for worker in workers)
        unpruned_s = streams / sum(worker.limits.streams / worker.in_batch.unpruned_s for worker in workers)
        constant_s = sum(
            worker.limits.streams * worker.in_batch.constant_s / worker.in_batch.unpruned_s
            for worker in workers
        )
        constant_s *= unpruned_s / streams
        self.in_batch = Line(constant_s, unpruned_s - constant_s)
        self.alone = min((worker.alone for worker in workers), key=lambda line: line.unpruned_s)
