"""The workers behind the queue: which are there, what each computes, and what is predicted of them. Pure."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from app.dispatch.policy.batches import Batch, QueueLimits, WorkerLane
from app.dispatch.policy.brown_out import CEILINGS
from app.dispatch.policy.budget import Budget
from app.dispatch.policy.load import Image, load_of
from app.dispatch.policy.predictions import Predictions
from app.dispatch.policy.scheduler import Scheduler
from app.dispatch.policy.shares import tokens
from app.messages import to_worker
from app.messages.capacity import Measured, Work
from app.messages.image import Lowered, Prediction
from app.messages.model import ModelInfo
from app.messages.to_dispatcher import Done, Worker
from app.messages.to_front_end import Load, WorkerState
from app.telemetry import metrics
from models.schedule import compute

log = logging.getLogger(__name__)

_SILENCE_S = 3.0  # a worker that says nothing for so long gets no batch

Key = tuple[int, int]  # a front end's connection, and its number for an image


class Unexpected(Exception):
    """A peer says what it may not say; the connection to it is to be closed."""


@dataclass(frozen=True, slots=True)
class Computing:
    """A batch that a worker has: for every image its key, what the worker was told of it, and why it was
    lowered. ``began``: when it was given."""

    batch: Batch
    keys: list[Key]
    orders: list[to_worker.Order]
    lowered: list[Lowered | None]
    began: float


@dataclass(slots=True)
class Member:
    """One worker: what it said of itself, when it was heard last, and what it computes."""

    hello: Worker
    budget: Budget
    heard: float
    computing: dict[int, Computing] = field(default_factory=dict)

    def is_ready(self, now: float) -> bool:
        """Whether it was heard of lately."""
        return now - self.heard < _SILENCE_S

    @property
    def keys(self) -> Iterator[Key]:
        """The images that it computes."""
        return (key for computing in self.computing.values() for key in computing.keys)


class Fleet:
    """All workers serve the same ``models``, by their names, the default one first. While there is no worker,
    the scheduler is asked for nothing."""

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        self.models: dict[str, ModelInfo] = {}
        self.members: dict[int, Member] = {}
        self.scheduler = Scheduler(limits)
        self.predictions = Predictions(self.scheduler)

    def __len__(self) -> int:
        return len(self.members)

    def join(self, peer: int, hello: Worker, now: float) -> bool:
        """A worker has come; gives back whether the models are others now. Raises Unexpected for one with
        other models than the others have."""
        models = {held.info.name: held.info for held in hello.models}
        names = ", ".join(models)
        if self.members and not _serve_alike(self.models, models):
            raise Unexpected(
                f"{hello.name} has loaded another model ({names}) than the other workers have; it gets no "
                "images while they run"
            )
        is_new = not self.members and self.models != models
        if is_new:
            self.models = models
        self.members[peer] = Member(hello, Budget(hello.limits), now)
        self.scheduler.join(peer, WorkerLane(hello.limits))
        self.predictions.join(peer, hello.limits, {held.info.name: held.measured for held in hello.models})
        log.info(
            "%s is ready: %s on %s in %s",
            *(hello.name, names, hello.models[0].info.device, hello.models[0].info.dtype),
        )
        return is_new

    def leave(self, peer: int) -> list[Key]:
        """A worker has gone. Where it was the last one: all that waits, in order."""
        del self.members[peer]
        self.scheduler.leave(peer)
        self.predictions.leave(peer)
        if self.members:
            return []
        waiting: list[Key] = [entry.key for entry in self.scheduler.entries()]  # type: ignore[misc]
        self.scheduler = Scheduler(self.limits)
        self.predictions = Predictions(self.scheduler)
        return waiting

    def look(self, now: float, set_apart: int | None) -> bool:
        """Give no batch to a worker that is silent, or set apart; gives back whether that has changed
        anything."""
        changed = False
        for peer, member in self.members.items():
            lane, accepting = self.scheduler.workers[peer], member.is_ready(now) and peer != set_apart
            changed |= lane.accepting != accepting
            lane.accepting = accepting
        return changed

    def learn(self, peer: int, batch: Batch, done: Done) -> float | None:
        """What the batch took goes into the predictions of those to come; gives back the relative error of
        its own, None where it cannot be said. Form smaller batches where it did not fit into memory."""
        error = None
        images, member, lane = len(done.results), self.members[peer], self.scheduler.workers[peer]
        if done.at_once == images:
            member.budget.fitted()
            predictions = [result for result in done.results if isinstance(result, Prediction)]
            if len(predictions) == images and done.seconds > 0:  # what it cost is known of all
                work = Work(images, sum(one.compute for one in predictions))
                error = self.predictions.observe(
                    peer, batch.model, Measured(batch.threads, work, done.seconds)
                )
        elif done.memory_was_short:
            member.budget.did_not_fit(batch.tokens, done.at_once / images)
            metrics.OUT_OF_MEMORY.inc()
            log.warning(
                "a batch of %d images did not fit into the memory of %s; of at most %d tokens from now on",
                *(images, member.hello.name, member.budget.tokens),
            )
        if member.budget.tokens != lane.limits.batch_tokens:
            lane.limits = replace(lane.limits, batch_tokens=member.budget.tokens)
            self.scheduler.refresh()
        return error

    def states(self, now: float) -> list[WorkerState]:
        """How the workers are."""
        return [
            WorkerState(
                member.hello.name,
                member.hello.models[0].info.device,
                member.is_ready(now),
                len(list(member.keys)),
            )
            for member in self.members.values()
        ]

    def load(self, now: float) -> Load | None:
        """The load as front ends are told it; None while there is no worker."""
        if not self.members:
            return None
        images = {
            name: Image(
                compute(info.architecture, info.method.stages, CEILINGS[-1]),
                tokens(info, 1.0),
            )
            for name, info in self.models.items()
        }
        return load_of(self.scheduler, self.predictions, images, now)


def _serve_alike(models: Mapping[str, ModelInfo], others: Mapping[str, ModelInfo]) -> bool:
    """Whether two workers with these models give the same answers."""
    return list(models) == list(others) and all(info.serves_as(others[name]) for name, info in models.items())
