"""A worker: it takes batches from the dispatcher and gives back their results.

It knows no queue and no deadline. A batch is of one of the models that it holds. One thread talks with the
dispatcher; compute threads, the streams, take a batch each. What computes is behind `Backend`, so this module
knows no torch. When the dispatcher is replaced the worker connects to the successor; its models stay loaded.
"""

import contextlib
import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from jaxtyping import UInt8

from app.messages.image import Ask, Prediction
from app.messages.slots import ReadSlot
from app.messages.to_dispatcher import Alive, Checked, Done, Held, Worker
from app.messages.to_worker import Batch, Check
from app.processes import background
from app.processes.heartbeat import Beat, Heartbeat, Progress
from app.telemetry import metrics
from app.telemetry.rarely import Rarely
from app.worker.backend import Backend, Job, Loaded
from app.worker.connection import Connection, Gone
from app.worker.parts import BackendBroken, Computed, compute_in_parts, refuse_lost
from app.worker.streams import Streams
from models.schedule import UNPRUNED

log = logging.getLogger(__name__)

_ALIVE_EVERY_S = 0.5
_TURN_S = 0.25
_TRY_EVERY_S = 0.02  # while there is no dispatcher
_SETTLED_S, _UNWANTED_S = 1.0, 0.5
_END_S = 1.0  # for what is still computed, such as a warm-up
MOST_HELD = 4  # images whose pixels are kept to be run again

# What is asked of an image that is run for ourselves.
_CHECKED = Ask(pruning=UNPRUNED, top_k=1)
_FAULTS = {
    "worker-fault": "computing it alone failed, though a blank image can be computed",
    "no-number": "its scores are not finite numbers",
}


@dataclass(frozen=True, slots=True)
class _Model:
    """A model that is held: what computes it, what reads the slots of its images, and an image that it can
    compute."""

    backend: Backend
    loaded: Loaded
    read_slot: ReadSlot
    harmless: Job


@dataclass(frozen=True, slots=True)
class _Order:
    """A batch or a check, and the connection on which it came: only there the result is of use."""

    connection: Connection
    asked: Batch | Check


class WorkerLoop:
    """Computes for the dispatcher at that path until `stop`, with a backend for each model, the default one
    first.

    ``slots`` gives the reader of slots with images of so many bytes.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        backends: Sequence[Backend],
        slots: Callable[[int], ReadSlot],
        heartbeat: Heartbeat | None = None,
        hang_after_s: float = 10.0,
    ) -> None:
        self.name = name
        self._path, self._backends, self._slots_of, self._heartbeat = path, backends, slots, heartbeat
        self._limits = backends[0].limits
        self._progress = Progress(hang_after_s)
        self._watched = threading.Lock()
        self._turns = 0
        self._models: dict[str, _Model] = {}
        self._ready = False
        self._held: deque[tuple[int, str, UInt8[np.ndarray, " bytes"]]] = deque(maxlen=MOST_HELD)
        self._failures: SimpleQueue[BaseException] = SimpleQueue()
        self._computing = 0
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)  # noqa: FBT003
        self._lost = Rarely()
        self._stopping = False

    def __repr__(self) -> str:
        return f"<WorkerLoop {self.name}: {self._computing} batches>"

    @property
    def loaded(self) -> bool:
        """Whether it has had models that work."""
        return self._ready

    def stop(self) -> None:
        """Finish what is being computed, then return from `run`. Safe in a signal handler."""
        self._stopping = True
        self._waker.send(b"!")

    def run(self) -> None:
        """Load, then compute. Raises what `Backend.load` raised, and BackendBroken."""
        self._streams = Streams(self._limits.streams, self._take)
        background.thread(self._load, "load", background.end_process)
        try:
            while not self._ready and not self._stopping:
                select.select([self._woken], [], [], _TURN_S)
                self._hear_of_failures()
                self._beat()
            while self._ready and not self._stopping:
                self._serve()
        finally:
            self._streams.end(_END_S)

    def _serve(self) -> None:
        """Until the dispatcher has gone, or this is to stop."""
        try:
            connection = Connection(self._path)
        except Gone:
            self._beat()
            time.sleep(_TRY_EVERY_S)
            return
        connected = time.monotonic()
        try:
            held = [Held(model.loaded.info, model.loaded.measured) for model in self._models.values()]
            connection.send(Worker(self.name, tuple(held), self._limits))
            self._talk(connection)
        except Gone:
            now = time.monotonic()
            if self._lost.due(now) is not None:
                dropped = "; what is being computed for it is dropped" if self._computing else ""
                log.info("the dispatcher has gone%s", dropped)
            self._beat()
            # One that hangs up at once does not want this worker: the others have other models.
            time.sleep(_TRY_EVERY_S if now > connected + _SETTLED_S else _UNWANTED_S)
        finally:
            connection.close()

    def _talk(self, connection: Connection) -> None:
        said = time.monotonic()
        while not (self._stopping and not self._computing):
            for message in connection.receive(self._woken, _TURN_S):
                with self._watched:
                    self._computing += 1
                    if isinstance(message, Batch):
                        self._progress.began(id(message), message.tokens)
                self._streams.put(_Order(connection, message))
            self._hear_of_failures()
            self._beat()
            if time.monotonic() > said + _ALIVE_EVERY_S:
                said = time.monotonic()
                connection.send(Alive())

    def _hear_of_failures(self) -> None:
        """Raises what a thread failed with."""
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)
        if not self._failures.empty():
            raise self._failures.get()

    def _beat(self) -> None:
        """Tell the supervisor that this thread goes on, and which batch has run longest."""
        self._turns += 1
        if self._heartbeat is not None:
            with self._watched:
                number, allowed_s = self._progress.oldest
            self._heartbeat.write(Beat(self._turns, number, allowed_s, self._ready))

    # --- threads ------------------------------------------------------------------------------------
    def _load(self) -> None:
        began = time.monotonic()
        try:
            for backend in self._backends:
                loaded = backend.load(self._streams.on_all)
                read_slot = self._slots_of(loaded.info.pixel_bytes)
                self._models[loaded.info.name] = _Model(backend, loaded, read_slot, _blank(loaded))
            load_s = (time.monotonic() - began) / len(self._models)
            self._progress.first_s = max(
                _first_batch_s(model.loaded, load_s) for model in self._models.values()
            )
            for fault in _FAULTS:  # there from the start, so that the first shows as a rise
                metrics.IMAGES_FAILED.labels(fault)
            self._tell_of_memory()
            self._ready = True
        except BaseException as error:
            self._failures.put(error)
        self._wake()

    def _wake(self) -> None:
        self._waker.send(b"!")

    def _take(self, order: _Order) -> None:
        """In a compute thread."""
        try:
            if isinstance(order.asked, Batch):
                self._compute(order.connection, order.asked)
            else:
                self._check(order.connection, order.asked)
        except Gone:  # nobody waits for it
            pass
        except BackendBroken as error:  # it ends the process: health must not stay green
            self._failures.put(error)
        with self._watched:
            self._computing -= 1
        if self._stopping or not self._failures.empty():
            self._wake()

    def _compute(self, connection: Connection, batch: Batch) -> None:
        model = self._models[batch.model]
        began = time.monotonic()
        try:
            jobs = [Job(order.ask, model.read_slot(order.slot)) for order in batch.images]
            compute = partial(model.backend.classify, threads=batch.threads)
            computed = compute_in_parts(compute, jobs, model.harmless)
        finally:
            seconds = time.monotonic() - began
            with self._watched:
                self._progress.ended(id(batch), batch.tokens, seconds)
        for order, job, result in zip(batch.images, jobs, computed.results, strict=True):
            if order.hold is not None and isinstance(result, Prediction) and result.keep_ratio < 1:
                self._held.append((order.hold, batch.model, job.pixels.copy()))
        connection.send(
            Done(batch.number, computed.results, seconds, computed.at_once, computed.memory_was_short)
        )
        _tell_of_faults(batch, computed)
        self._tell_of_memory()

    def _tell_of_memory(self) -> None:
        """Of all models together, which are on one device."""
        metrics.labelled(metrics.DEVICE_MEMORY, self.name).set(self._backends[0].memory_bytes())

    def _check(self, connection: Connection, check: Check) -> None:
        """Run an answered image unpruned, on one thread: an image that comes meanwhile has the others."""
        held = next((held for held in self._held if held[0] == check.hold), None)
        label: int | None = None
        if held is not None:
            _, model, pixels = held
            try:
                (prediction,) = self._models[model].backend.classify([Job(_CHECKED, pixels)], 1)
                label = prediction.classes[0]
            except Exception as error:
                refuse_lost(error)
                log.exception("an image that was to be run again unpruned failed")
        connection.send(Checked(check.hold, label))


def _tell_of_faults(batch: Batch, computed: Computed[Prediction]) -> None:
    """In the log: which images have no result, and what was raised."""
    images = len(batch.images)
    for error in computed.errors:
        log.error("computing a batch of %d images failed:\n%s", images, error.rstrip())
    for order, result in zip(batch.images, computed.results, strict=True):
        if not isinstance(result, Prediction) and result in _FAULTS:
            metrics.IMAGES_FAILED.labels(result).inc()
            log.error(
                "one image of a batch of %d is refused (%s), the others are answered; it asked for %s",
                *(images, _FAULTS[result], order.ask.pruning),
            )


def _blank(loaded: Loaded) -> Job:
    """An image that every sound backend can compute."""
    ask = Ask(pruning=UNPRUNED, top_k=1, features=not loaded.info.labels)
    return Job(ask, np.zeros(loaded.info.pixel_bytes, np.uint8))


def _first_batch_s(loaded: Loaded, load_s: float) -> float:
    """What the first batch may be expected to take: a full one of unpruned images, by the slowest that was
    measured, or a quarter of the load, in which a few were computed."""
    arch = loaded.info.architecture
    images = max(1, loaded.limits.batch_tokens // (arch.patches + arch.prefix_tokens))
    slowest_s = max(measured.seconds / measured.work.compute for measured in loaded.measured)
    return max(load_s / 4, images * slowest_s)
