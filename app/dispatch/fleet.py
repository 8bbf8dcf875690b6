"""The connected workers, what each is computing, and the predictions for them. Pure."""

import logging
from collections.abc import Collection, Iterator
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
from app.messages.to_dispatcher import Done, Held, Worker
from app.messages.to_front_end import Load, WorkerState
from app.telemetry import metrics
from models.schedule import compute

log = logging.getLogger(__name__)

_SILENCE_S = 3.0  # a worker gets no batches after it has been silent for this time

Key = tuple[int, int]  # a front end's connection, and its number for the image


class Unexpected(Exception):
    """A peer has sent a message that is not allowed. Its connection is closed."""


@dataclass(frozen=True, slots=True)
class Computing:
    """A batch that a worker computes: the key of every image, its order, and why its ratio was lowered.
    ``began``: when the batch was sent."""

    batch: Batch
    keys: list[Key]
    orders: list[to_worker.Order]
    lowered: list[Lowered | None]
    began: float


@dataclass(slots=True)
class Member:
    """One worker: its first message, when it was last heard of, its models by name, and what it computes."""

    hello: Worker
    budget: Budget
    heard: float
    held: dict[str, Held]
    computing: dict[int, Computing] = field(default_factory=dict)

    def is_ready(self, now: float) -> bool:
        """Whether it was heard of recently."""
        return now - self.heard < _SILENCE_S

    @property
    def keys(self) -> Iterator[Key]:
        """The images that it computes."""
        return (key for computing in self.computing.values() for key in computing.keys)


@dataclass(frozen=True, slots=True)
class TakenIn:
    """The result of comparing a worker's models with those that are served. ``is_new``: the served models
    have changed. ``lacks``: models that it must load before it gets images. ``beyond``: models that it must
    drop."""

    is_new: bool = False
    lacks: tuple[str, ...] = ()
    beyond: tuple[str, ...] = ()


class Fleet:
    """All ``members`` hold the same ``models``, by name, the default one first. While there are no members,
    the scheduler is not used.

    ``others``: the names of the models that are served in addition to the default one, if they may change. A
    worker that lacks one of them is ``aside`` until it has loaded it. None: the models of the first worker
    are served.
    """

    def __init__(self, limits: QueueLimits, others: Collection[str] | None = None) -> None:
        self.limits = limits
        self.others = None if others is None else list(others)
        self.models: dict[str, ModelInfo] = {}
        self.members: dict[int, Member] = {}
        self.aside: dict[int, Member] = {}
        self.scheduler = Scheduler(limits)
        self.predictions = Predictions(self.scheduler)

    def __len__(self) -> int:
        return len(self.members)

    def worker(self, peer: int) -> Member | None:
        """The worker of that connection, even if it is set aside."""
        return self.members.get(peer) or self.aside.get(peer)

    def join(self, peer: int, hello: Worker, now: float) -> TakenIn:
        """Add a worker. Raises Unexpected if it has other models than the other workers."""
        held = {each.info.name: each for each in hello.models}
        self.aside[peer] = Member(hello, Budget(hello.limits), now, held)
        return self.take_in(peer)

    def take_in(self, peer: int) -> TakenIn:
        """Make a worker that is set aside a member, if it has the served models. Raises as `join` does."""
        member = self.aside[peer]
        held, hello = member.held, member.hello
        wanted = self._wanted(hello)
        lacks = tuple(name for name in wanted if name not in held)
        beyond = tuple(name for name in held if name not in wanted)
        if not self._fits(hello, held) or (self.others is None and (lacks or beyond)):
            del self.aside[peer]
            raise Unexpected(
                f"{hello.name} has loaded other models ({', '.join(held)}) than the other workers; it gets "
                "no "
                "images while they run"
            )
        for name in beyond:
            del held[name]
        if lacks:
            return TakenIn(lacks=lacks, beyond=beyond)
        models = {name: held[name].info for name in wanted}
        is_new = not self.members and self.models != models
        if is_new:
            self.models = models
        self.members[peer] = self.aside.pop(peer)
        self.scheduler.join(peer, WorkerLane(hello.limits))
        self.predictions.join(peer, hello.limits, {name: held[name].measured for name in wanted})
        log.info(
            "%s is ready: %s on %s in %s",
            *(hello.name, ", ".join(wanted), hello.models[0].info.device, hello.models[0].info.dtype),
        )
        return TakenIn(is_new, beyond=beyond)

    def add_model(self, name: str) -> bool:
        """Serve a model that all members have. Returns False if they have different models under this
        name."""
        infos = [member.held[name].info for member in self.members.values()]
        if not all(infos[0].serves_as(info) for info in infos):
            return False
        self.models[name] = infos[0]
        for peer, member in self.members.items():
            self.predictions.join(peer, member.hello.limits, {name: member.held[name].measured})
        return True

    def remove_model(self, name: str) -> None:
        """Stop serving a model of which no image waits or is computed."""
        del self.models[name]
        self.predictions.forget(name)

    def computes(self, name: str) -> bool:
        """Whether a batch of that model is being computed, even if nobody waits for it."""
        return any(
            computing.batch.model == name
            for member in self.members.values()
            for computing in member.computing.values()
        )

    def _wanted(self, hello: Worker) -> list[str]:
        """The names of the models that a worker must have, the default one first."""
        if self.members:
            return list(self.models)
        names = [each.info.name for each in hello.models]
        return (
            names if self.others is None else [names[0], *(name for name in self.others if name != names[0])]
        )

    def _fits(self, hello: Worker, held: dict[str, Held]) -> bool:
        """Whether the models of a worker give the same answers as those of the members with the same
        names."""
        if not self.members:
            return True
        same = all(held[name].info.serves_as(info) for name, info in self.models.items() if name in held)
        return same and hello.models[0].info.name == next(iter(self.models))

    def leave(self, peer: int) -> list[Key]:
        """Remove a worker. If it was the last member, returns all waiting images, in order."""
        if self.aside.pop(peer, None) is not None:
            return []
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
        """Stop sending batches to workers that are silent or set apart. Returns whether that has changed
        anything."""
        changed = False
        for peer, member in self.members.items():
            lane, accepting = self.scheduler.workers[peer], member.is_ready(now) and peer != set_apart
            changed |= lane.accepting != accepting
            lane.accepting = accepting
        return changed

    def learn(self, peer: int, batch: Batch, done: Done) -> float | None:
        """Update the predictions with the time of a batch. Returns the relative error of its own prediction,
        or None if there was none. Forms smaller batches if it did not fit into memory."""
        error = None
        images, member, lane = len(done.results), self.members[peer], self.scheduler.workers[peer]
        if done.at_once == images:
            member.budget.fitted()
            predictions = [result for result in done.results if isinstance(result, Prediction)]
            if len(predictions) == images and done.seconds > 0:  # the cost of every image is known
                work = Work(images, sum(one.compute for one in predictions))
                error = self.predictions.observe(
                    peer, batch.model, Measured(batch.threads, work, done.seconds)
                )
        elif done.memory_was_short:
            member.budget.did_not_fit(batch.tokens, done.at_once / images)
            metrics.OUT_OF_MEMORY.inc()
            log.warning(
                "%s ran out of memory with a batch of %d images; new limit: %d tokens per batch",
                *(member.hello.name, images, member.budget.tokens),
            )
        if member.budget.tokens != lane.limits.batch_tokens:
            lane.limits = replace(lane.limits, batch_tokens=member.budget.tokens)
            self.scheduler.refresh()
        return error

    def states(self, now: float) -> list[WorkerState]:
        """The state of each worker."""
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
        """The load as it is sent to front ends. None while there is no worker."""
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
