"""The dispatcher: takes messages from front ends and workers, and returns the messages to send.

It has no sockets and no clock. The owner of the sockets calls `received` and `gone`, then `turn`, and sends
what is in the ``outbox``. A peer is a number, a new one for each connection, so connections are never mixed
up.

Above 300 lines: one state machine, in which every event may end images. What can be separated has files of
its own: fleet.py, suspects.py, model_changes.py, announcements.py, batch_metrics.py and outbox.py.
"""

import logging
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import msgspec

from app.dispatch.announcements import Announcements
from app.dispatch.batch_metrics import BatchMetrics
from app.dispatch.fleet import Computing, Fleet, Key, Member, TakenIn, Unexpected
from app.dispatch.model_changes import ModelChanges
from app.dispatch.outbox import Outbox
from app.dispatch.policy.agreement import Agreement, Check
from app.dispatch.policy.batches import Batch, QueueLimits, Taken
from app.dispatch.policy.brown_out import CEILINGS, ratios
from app.dispatch.policy.fair_queue import Entry
from app.dispatch.suspects import WORKERS_AN_IMAGE_MAY_OUTLIVE, Suspects
from app.messages import to_worker
from app.messages.image import Ask, Lowered, Prediction
from app.messages.to_dispatcher import (
    Alive,
    Cancel,
    Checked,
    Done,
    FrontEnd,
    LoadModel,
    ModelLeft,
    ModelLoaded,
    ModelNotLoaded,
    ModelUnloaded,
    Record,
    Submit,
    ToDispatcher,
    UnloadModel,
    Worker,
)
from app.messages.to_front_end import Answer, RefusalReason, Refuse
from app.telemetry import metrics

log = logging.getLogger(__name__)

_LONGEST_TURN_S = 0.5
_RETRY_AFTER_S = 1.0


@dataclass(slots=True)
class _Image:
    """An image from its record to its outcome. ``admitted``: it was accepted, so later changes do not refuse
    it. ``crashes``: the number of workers that died computing it."""

    record: Record
    arrived: float
    deadline: float
    admitted: bool
    crashes: int = 0


class Dispatcher:
    """``slots``: the number of slots. While there is no worker, images wait for one for ``patience_s``.

    ``listed``: the names of the models that may be loaded while serving. ``others``: the names of those that
    are served in addition to the default one at the start. Both are None if the served models do not change.
    ``remember`` is called with the names when they have changed. ``load_limit_s``: the maximum time for a
    worker to load one of them.
    """

    def __init__(
        self,
        limits: QueueLimits,
        slots: int,
        patience_s: float = 30.0,
        agreement: Agreement | None = None,
        listed: Collection[str] | None = None,
        others: Collection[str] | None = None,
        remember: Callable[[Collection[str]], None] = lambda _: None,
        load_limit_s: float = math.inf,
    ) -> None:
        self.outbox = Outbox()
        self._fleet = Fleet(limits, others)
        self._slots, self._patience_s = slots, patience_s
        self._agreement = agreement or Agreement(0.0)
        # Front-end connections, with the number of the last record from each.
        self._front_ends: dict[int, int] = {}
        self._images: dict[Key, _Image] = {}
        self._waiting: dict[Key, None] = {}  # images that wait while there is no worker
        self._suspects = Suspects()
        self._checking: Check | None = None
        self._batches = 0
        self._changes = ModelChanges(
            self._fleet, self.outbox, self._front_ends, listed, remember, load_limit_s
        )
        self._announcements = Announcements(self.outbox)
        self._batch_metrics = BatchMetrics()
        metrics.QUEUE_LIMIT.set(limits.images)
        metrics.BROWN_OUT.set(CEILINGS[0])

    def __repr__(self) -> str:
        return (
            f"<Dispatcher: {len(self._front_ends)} front ends, {len(self._fleet.members)} workers, "
            f"{len(self._images)} images, {len(self._suspects)} suspects, {len(self._waiting)} without a "
            f"worker, {self._fleet.scheduler}>"
        )

    @property
    def idle(self) -> bool:
        """Whether every accepted image has had its outcome."""
        return not self._images

    # --- what comes ---------------------------------------------------------------------------------
    def received(self, peer: int, message: ToDispatcher, now: float) -> None:
        """Handle one message. Raises Unexpected."""
        if isinstance(message, FrontEnd):
            self._front_end_came(peer, message)
        elif isinstance(message, Worker):
            self._worker_came(peer, message, now)
        elif peer in self._front_ends:
            self._from_front_end(peer, message, now)
        elif (worker := self._fleet.worker(peer)) is not None:
            worker.heard = now
            self._from_worker(peer, worker, message, now)
        else:
            raise Unexpected(
                "the first message of a connection must say whether it is a front end or a worker"
            )

    def gone(self, peer: int) -> None:
        """The connection to the peer has ended."""
        if self._front_ends.pop(peer, None) is not None:
            mine = [key for key in self._images if key[0] == peer]
            for key in mine:
                self._withdraw(key)
            self._changes.front_end_gone(peer)
            log.info("front end disconnected%s", f"; dropped its {len(mine)} images" if mine else "")
        elif (worker := self._fleet.worker(peer)) is not None:
            self._worker_lost(peer, worker)
            self._changes.worker_gone(peer)

    def turn(self, now: float, *, stopping: bool = False) -> float:
        """Make all decisions that are due. Returns the maximum time in seconds until the next call."""
        self._announcements.workers_changed |= self._fleet.look(now, self._suspects.set_apart)
        self._expire(now)
        self._start_batches(now)
        if not stopping:
            self._check_one()
            self._changes.drop_if_unused(self._is_asked)
            self._changes.give_up_slow(now)
        self._announcements.tell_workers(self._fleet, self._front_ends, now)
        beside = len(self._waiting) + len(self._suspects)
        self._announcements.tell_load(self._fleet, beside, self._front_ends, now)
        due = self._batch_metrics.due(idle=self.idle)
        if due is not None and (now >= due or (stopping and self.idle)):
            self._batch_metrics.write()
        return self._patience_s_until_due(now)

    # --- front ends ---------------------------------------------------------------------------------
    def _front_end_came(self, peer: int, message: FrontEnd) -> None:
        if peer in self._front_ends or self._fleet.worker(peer) is not None:
            raise Unexpected("the first message of a connection was sent twice")
        self._front_ends[peer] = 0
        log.info("front end %d connected", message.index)
        self._changes.front_end_came(peer)
        self._announcements.workers_changed = self._announcements.load_changed = True

    def _from_front_end(self, peer: int, message: ToDispatcher, now: float) -> None:
        match message:
            case Submit(records):
                self._announcements.load_changed = True
                for record in records:
                    self._front_ends[peer] = max(self._front_ends[peer], record.id)
                    self._accept((peer, record.id), record, now)
            case Cancel(ids):
                self._announcements.load_changed = True
                for number in ids:
                    self._withdraw((peer, number))
            case LoadModel() | UnloadModel():
                self._changes.asked(peer, message)
            case ModelLeft(name):
                self._changes.left(peer, name)
            case _:
                raise Unexpected(f"unexpected message from a front end: {type(message).__name__}")

    def _accept(self, key: Key, record: Record, now: float) -> None:
        if key in self._images:
            raise Unexpected("a front end sent the same image twice")
        if record.slot >= self._slots:
            log.error("a front end sent slot number %d, but there are %d slots", record.slot, self._slots)
            self._refuse(key, "worker-fault")
            return
        if record.deadline_s <= 0:
            self._refuse(key, "deadline-passed")
            return
        image = _Image(record, now, now + record.deadline_s, record.again)
        if self._fleet.members:
            self._schedule(key, image, now)
        elif len(self._waiting) >= self._fleet.limits.images and not image.admitted:
            self._refuse(key, "queue-full")
        else:
            self._images[key] = image
            self._waiting[key] = None

    def _schedule(self, key: Key, image: _Image, now: float) -> None:
        record = image.record
        model = self._fleet.models.get(record.model)
        if model is None and self._changes.are_allowed:  # the model was unloaded before the image arrived
            self._images.pop(key, None)
            self._refuse(key, "model-unloaded", None)
            return
        if model is None or record.size != model.pixel_bytes:  # the image was prepared for another model
            takes = "which is not loaded" if model is None else f"which needs {model.pixel_bytes} bytes"
            log.error(
                "an image has %d bytes of pixels for the model %s, %s", record.size, record.model, takes
            )
            self._images.pop(key, None)
            self._refuse(key, "worker-fault")
            return
        entry = self._entry(key, image, now)
        if image.admitted:
            self._fleet.scheduler.readmit(entry, now)
        elif (refusal := self._fleet.scheduler.submit(entry, now)) is not None:
            self._images.pop(key, None)
            self._refuse(key, refusal.reason, refusal.retry_after_s)
            return
        self._images[key] = image
        image.admitted = True

    def _entry(self, key: Key, image: _Image, now: float) -> Entry:
        model = self._fleet.models[image.record.model]
        return self._fleet.predictions.entry(key, image.record, model, now, image.deadline)

    def _withdraw(self, key: Key) -> None:
        """Drop an image that nobody waits for. If it is being computed, its result is discarded."""
        if self._images.pop(key, None) is not None:
            self._waiting.pop(key, None)
            self._suspects.withdraw(key)
            self._fleet.scheduler.cancel(key)

    def _is_asked(self, model: str) -> bool:
        """Whether an image for that model waits or is being computed."""
        return any(image.record.model == model for image in self._images.values())

    def _refuse(self, key: Key, reason: RefusalReason, retry_after_s: float | None = _RETRY_AFTER_S) -> None:
        self.outbox.refuse(key[0], Refuse(key[1], reason, retry_after_s))

    def _expire(self, now: float) -> None:
        for entry in self._fleet.scheduler.expire(now):
            key: Key = entry.key  # type: ignore[assignment]
            del self._images[key]
            self._refuse(key, "deadline-passed")
            self._announcements.load_changed = True
        for key in list(self._waiting):
            image = self._images[key]
            if now < min(image.arrived + self._patience_s, image.deadline):
                continue
            del self._waiting[key], self._images[key]
            self._refuse(key, "deadline-passed" if now >= image.deadline else "not-ready")

    # --- workers ------------------------------------------------------------------------------------
    def _worker_came(self, peer: int, hello: Worker, now: float) -> None:
        if peer in self._front_ends or self._fleet.worker(peer) is not None:
            raise Unexpected("the first message of a connection was sent twice")
        self._taken_in(peer, self._fleet.join(peer, hello, now), now)

    def _taken_in(self, peer: int, found: TakenIn, now: float) -> None:
        """Continue after a worker has reported its models."""
        self._changes.worker_came(peer, found)
        self._announcements.workers_changed = self._announcements.load_changed = True
        if not self._fleet.members:
            return
        waiting, self._waiting = self._waiting, {}
        for key in waiting:
            self._schedule(key, self._images[key], now)

    def _from_worker(self, peer: int, worker: Member, message: ToDispatcher, now: float) -> None:
        match message:
            case Alive():
                pass
            case ModelLoaded(held) if peer in self._fleet.aside:
                worker.held[held.info.name] = held
                self._taken_in(peer, self._fleet.take_in(peer), now)
            case ModelLoaded() | ModelUnloaded() | ModelNotLoaded():
                self._changes.worker_said(peer, worker, message)
                self._announcements.load_changed = True
            case Done(batch):
                if (computing := worker.computing.pop(batch, None)) is None:
                    raise Unexpected(f"{worker.hello.name} sent the results of a batch that it was not given")
                self._finish(peer, worker, computing, message)
            case Checked(hold, label):
                if self._checking is not None and self._checking.hold == hold:
                    if label is not None:
                        self._agreement.found(self._checking, label)
                    self._checking = None
            case _:
                raise Unexpected(f"unexpected message from a worker: {type(message).__name__}")

    def _worker_lost(self, peer: int, worker: Member) -> None:
        """Compute the images of the worker again, each alone, because one of them may have been the cause."""
        self._announcements.workers_changed = self._announcements.load_changed = True
        self._suspects.lost(peer)
        self._agreement.lost(peer)
        if self._checking is not None and self._checking.worker == peer:
            self._checking = None
        lost = list(worker.keys)
        for key in lost:
            if (image := self._images.get(key)) is None:
                continue
            image.crashes += 1
            if image.crashes < WORKERS_AN_IMAGE_MAY_OUTLIVE:
                self._suspects.add(key)
                metrics.IMAGES_SENT_AGAIN.inc()
            else:
                del self._images[key]
                self._refuse(key, "worker-lost", None)
        log.warning(
            "lost the connection to %s while it was computing %d images", worker.hello.name, len(lost)
        )
        self._waiting |= dict.fromkeys(self._fleet.leave(peer))

    # --- batches ------------------------------------------------------------------------------------
    def _start_batches(self, now: float) -> None:
        if not self._fleet.members:
            return
        depth = self._fleet.scheduler.depth
        self._fleet.scheduler.relax(now)
        self._announcements.load_changed |= self._fleet.scheduler.depth != depth
        if (found := self._suspects.next(self._fleet.scheduler)) is not None:
            peer, key = found
            entry = self._entry(key, self._images[key], now)  # type: ignore[arg-type, index]
            taken = Taken(entry, self._fleet.scheduler.depth, by_deadline=False)
            threads = self._fleet.members[peer].hello.limits.threads
            batch = Batch(peer, (taken,), threads, now + entry.alone_s[self._fleet.scheduler.depth])
            self._suspects.trial = batch
            self._give(batch, now)
        while (next_batch := self._fleet.scheduler.next_batch(now)) is not None:
            self._give(next_batch, now)

    def _give(self, batch: Batch, now: float) -> None:
        self._announcements.load_changed = True
        self._batches += 1
        computing = Computing(batch, [], [], [], now)
        for taken in batch.taken:
            key: Key = taken.entry.key  # type: ignore[assignment]
            record = self._images[key].record
            ask, lowered = _at_its_ratio(record.ask, taken)
            pruned = ask.pruning.keep_ratio < 1 or ask.pruning.keep_mass is not None
            hold = self._agreement.draw() if pruned and ask.top_k else None
            computing.keys.append(key)
            computing.orders.append(to_worker.Order(record.slot, ask, hold))
            computing.lowered.append(lowered)
        self._fleet.members[batch.worker].computing[self._batches] = computing
        self.outbox.tell_worker(
            batch.worker,
            to_worker.Batch(self._batches, batch.threads, batch.tokens, computing.orders, batch.model),
        )

    def _finish(self, peer: int, worker: Member, computing: Computing, done: Done) -> None:
        if len(done.results) != len(computing.keys):
            worker.computing[done.batch] = computing  # its images are retried
            raise Unexpected(f"a batch of {len(computing.keys)} images has {len(done.results)} results")
        self._announcements.load_changed = True
        if computing.batch is self._suspects.trial:
            self._suspects.ended()
        else:
            self._fleet.scheduler.finished(computing.batch)
        for index, (key, result) in enumerate(zip(computing.keys, done.results, strict=True)):
            if (image := self._images.pop(key, None)) is None:  # withdrawn in the meantime
                continue
            if not isinstance(result, Prediction):
                self._refuse(key, result)
                continue
            queue_s = computing.began - image.arrived
            answer = Answer(key[1], result, queue_s, done.seconds, computing.lowered[index])
            self.outbox.answer(key[0], answer)
            if (hold := computing.orders[index].hold) is not None:
                self._agreement.answered(Check(peer, hold, result.classes[0], result.keep_ratio))
        error = self._fleet.learn(peer, computing.batch, done)
        self._batch_metrics.count(
            self._fleet.models[computing.batch.model],
            worker.hello.limits.batch_tokens,
            computing,
            done,
            error,
            worker.heard,
        )

    def _check_one(self) -> None:
        """Have an answered image computed again without pruning while there is nothing else to do."""
        if self._checking is not None or not self._fleet.scheduler.idle or self._suspects.waiting:
            return
        if (check := self._agreement.take()) is not None:
            self._checking = check
            self.outbox.tell_worker(check.worker, to_worker.Check(check.hold))

    def _patience_s_until_due(self, now: float) -> float:
        due = min(now + _LONGEST_TURN_S, self._announcements.due)
        for other in (self._fleet.scheduler.next_expiry(), self._batch_metrics.due(idle=self.idle)):
            if other is not None:
                due = min(due, other)
        for key in self._waiting:
            image = self._images[key]
            due = min(due, image.arrived + self._patience_s, image.deadline)
        return max(0.0, due - now)


def _at_its_ratio(ask: Ask, taken: Taken) -> tuple[Ask, Lowered | None]:
    """The request at the keep ratio of the scheduler's depth, and the reason if that is lower than
    requested."""
    if ask.min_keep_ratio is None:
        return ask, None
    asked = ask.pruning.keep_ratio
    ratio = ratios(asked, ask.min_keep_ratio)[taken.depth]
    if ratio == asked:
        return ask, None
    lowered = msgspec.structs.replace(
        ask, pruning=replace(ask.pruning, keep_ratio=ratio), min_keep_ratio=None
    )
    return lowered, "deadline" if taken.by_deadline else "brown-out"
