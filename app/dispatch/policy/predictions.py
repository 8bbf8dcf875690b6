"""The predicted time of an image over all workers, from the measurements of each worker. Pure.

A queue in front of several workers needs one time per image, whichever worker computes it: the mean with
which the throughput of the queue is right. The pace of a worker is its relation to this mean. With one
worker, or several equal ones, every pace is 1.
"""

import math
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field

import msgspec

from app.dispatch.policy.batches import Rates
from app.dispatch.policy.brown_out import DEPTHS
from app.dispatch.policy.cost import CostModel
from app.dispatch.policy.fair_queue import Entry
from app.dispatch.policy.scheduler import Scheduler
from app.dispatch.policy.shares import shares, tokens
from app.messages.capacity import Limits, Measured
from app.messages.image import Ask
from app.messages.model import ModelInfo
from app.messages.to_dispatcher import Record

_MOST_REMEMBERED = 4096  # a limit is needed, because clients choose the ratios


class Line(msgspec.Struct, frozen=True):
    """Seconds as a function of a share of compute: ``constant_s`` plus ``compute_s`` times the share."""

    constant_s: float
    compute_s: float

    def at(self, share: float) -> float:
        """The seconds."""
        return self.constant_s + self.compute_s * share

    @property
    def unpruned_s(self) -> float:
        """The seconds of an image that is not pruned."""
        return self.constant_s + self.compute_s


_UNKNOWN = Line(0.0, 1.0)

Weights = dict[Ask, tuple[tuple[float, ...], tuple[int, ...]]]


@dataclass(slots=True)
class _Costs:
    """The costs of one model on one worker."""

    limits: Limits
    costs: CostModel
    in_batch: Line = _UNKNOWN
    alone: Line = _UNKNOWN

    def predict(self) -> float:
        """Update both lines. Returns the overhead of a batch."""
        overhead, image, compute = self.costs.line(self.limits.stream_threads)
        self.in_batch = Line(image, compute)
        constant, image, compute = self.costs.line(self.limits.threads)
        self.alone = Line(constant + image, compute)
        return overhead


@dataclass(slots=True)
class Predictions:
    """Keeps the scheduler's view of its workers up to date with their measurements, for each model by name.

    ``in_batch`` is the time of an image in a batch on one stream, ``alone`` its time by itself on idle
    workers.
    """

    scheduler: Scheduler
    in_batch: dict[str, Line] = field(default_factory=dict)
    alone: dict[str, Line] = field(default_factory=dict)
    _costs: dict[str, dict[int, _Costs]] = field(default_factory=dict)  # by model and worker
    _weights: dict[str, tuple[ModelInfo, Weights]] = field(default_factory=dict)

    def join(self, name: int, limits: Limits, measured: Mapping[str, tuple[Measured, ...]]) -> None:
        """Add a worker of the scheduler, with its measurements of each model from the warm-up."""
        for model, batches in measured.items():
            self._costs.setdefault(model, {})[name] = _Costs(limits, CostModel.learned(batches))
            self._predict(model)

    def leave(self, name: int) -> None:
        """Remove a worker."""
        for model in [model for model, workers in self._costs.items() if workers.pop(name, None)]:
            if self._costs[model]:
                self._predict(model)
            else:
                del self._costs[model], self.in_batch[model], self.alone[model]

    def forget(self, model: str) -> None:
        """Remove a model that no worker has any more."""
        for name in self._costs.pop(model, {}):
            self.scheduler.workers[name].rates.pop(model, None)
        self.in_batch.pop(model, None)
        self.alone.pop(model, None)
        self._weights.pop(model, None)
        self._settle()

    def observe(self, name: int, model: str, measured: Measured) -> float:
        """Learn from a batch of that worker. Returns the relative error of its prediction."""
        error = self._costs[model][name].costs.observe(measured)
        self._predict(model)
        return error

    def entry(self, key: Hashable, record: Record, info: ModelInfo, now: float, deadline: float) -> Entry:
        """The image as an entry of the scheduler, with its predicted cost."""
        at_depths, weights = self._weights_of(info, record.ask)
        limit_s = math.inf if record.own_deadline else self.scheduler.limits.wait_s
        in_batch, alone = self.in_batch[info.name], self.alone[info.name]
        if record.ask.min_keep_ratio is None:  # it cannot be lowered, so all depths are the same
            seconds = (in_batch.at(at_depths[0]),) * DEPTHS
            alone_s = (alone.at(at_depths[0]),) * DEPTHS
        else:
            seconds = tuple(map(in_batch.at, at_depths))
            alone_s = tuple(map(alone.at, at_depths))
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
            model=info.name,
        )

    def _weights_of(self, info: ModelInfo, ask: Ask) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """The cost of the image at every depth, as shares of compute and in tokens, cached for each model."""
        known = self._weights.get(info.name)
        if known is None or info is not known[0] or len(known[1]) >= _MOST_REMEMBERED:
            known = self._weights[info.name] = info, {}
        found = known[1].get(ask)
        if found is None:
            at_depths = shares(info, ask)
            found = at_depths, tuple(tokens(info, share) for share in at_depths)
            known[1][ask] = found
        return found

    def _predict(self, model: str) -> None:
        workers = self._costs[model]
        overheads = {name: worker.predict() for name, worker in workers.items()}
        if len(workers) == 1:  # the same as below, with all paces equal to 1
            ((name, only),) = workers.items()
            self.in_batch[model], self.alone[model] = only.in_batch, only.alone
            self.scheduler.workers[name].rates[model] = Rates(overheads[name])
        else:
            self._predict_for_all(model, workers.values())
            unpruned_s, alone_s = self.in_batch[model].unpruned_s, self.alone[model].unpruned_s
            for name, worker in workers.items():
                self.scheduler.workers[name].rates[model] = Rates(
                    overheads[name],
                    worker.in_batch.unpruned_s / unpruned_s,
                    worker.alone.unpruned_s / alone_s,
                )
        self._settle()

    def _settle(self) -> None:
        cautions = (each.costs.caution for workers in self._costs.values() for each in workers.values())
        self.scheduler.caution = max(cautions, default=self.scheduler.caution)
        self.scheduler.refresh()

    def _predict_for_all(self, model: str, workers: Collection[_Costs]) -> None:
        """One line for several workers: the mean with which the throughput of the queue is right."""
        streams = sum(worker.limits.streams for worker in workers)
        unpruned_s = streams / sum(worker.limits.streams / worker.in_batch.unpruned_s for worker in workers)
        constant_s = sum(
            worker.limits.streams * worker.in_batch.constant_s / worker.in_batch.unpruned_s
            for worker in workers
        )
        constant_s *= unpruned_s / streams
        self.in_batch[model] = Line(constant_s, unpruned_s - constant_s)
        self.alone[model] = min((worker.alone for worker in workers), key=lambda line: line.unpruned_s)
