"""A worker: it takes batches from the dispatcher and returns their results.

It has no queue and no deadlines. A batch is for one of its models. One thread communicates with the
dispatcher; compute threads, the streams, each take a batch; another thread loads and unloads models. The
computation is behind `Backend`, so this module does not import torch. When the dispatcher is replaced, the
worker connects to the new one; its models stay loaded.
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
from app.messages.to_dispatcher import Alive, Checked, Done, ModelLoaded, Worker
from app.messages.to_worker import Batch, Check, LoadModel, UnloadModel
from app.processes import background
from app.processes.heartbeat import Beat, Heartbeat, Progress
from app.telemetry import metrics
from app.telemetry.rarely import Rarely
from app.worker.backend import Backend, Job
from app.worker.connection import Connection, Gone
from app.worker.faults import report_faults, show_faults
from app.worker.held_models import HeldModels
from app.worker.model_loader import ModelLoader, Told
from app.worker.parts import BackendBroken, compute_in_parts, raise_if_lost
from app.worker.streams import Streams
from models.schedule import UNPRUNED

log = logging.getLogger(__name__)

_ALIVE_EVERY_S = 0.5
_TURN_S = 0.25
_TRY_EVERY_S = 0.02  # between attempts to connect to the dispatcher
_SETTLED_S, _UNWANTED_S = 1.0, 0.5
_END_S = 1.0  # time limit for work that is still running, such as a warm-up
MOST_HELD = 4  # number of images whose pixels are kept for a second run

# The request for images that the server runs again for itself.
_CHECKED = Ask(pruning=UNPRUNED, top_k=1)


@dataclass(frozen=True, slots=True)
class _Order:
    """A batch or a check, and the connection on which it arrived: its result can only be used there."""

    connection: Connection
    asked: Batch | Check


def only_those_of_the_start(name: str) -> Backend:
    """Raises ValueError: no model is loaded later."""
    raise ValueError(f"{name} is no model of this worker")


class WorkerLoop:
    """Computes for the dispatcher at that path until `stop`, with a backend for each model, the default one
    first.

    ``slots`` returns the reader of slots for images with this many bytes. ``backend_of`` returns the backend
    of a model that is loaded while others are served (app.worker.model_loader).
    """

    def __init__(
        self,
        name: str,
        path: Path,
        backends: Sequence[Backend],
        slots: Callable[[int], ReadSlot],
        heartbeat: Heartbeat | None = None,
        hang_after_s: float = 10.0,
        backend_of: Callable[[str], Backend] = only_those_of_the_start,
    ) -> None:
        self.name = name
        self._path, self._backends, self._heartbeat = path, backends, heartbeat
        self._backend_of = backend_of
        self._limits = backends[0].limits
        self._progress = Progress(hang_after_s)
        self._watched = threading.Lock()
        self._turns = 0
        self._models = HeldModels(slots)
        # The connection on which the dispatcher knows the held images.
        self._connection: Connection | None = None
        self._telling = threading.Lock()
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
        """Whether it has loaded its models."""
        return self._ready

    def stop(self) -> None:
        """Finish the running batches, then return from `run`. Can be called in a signal handler."""
        self._stopping = True
        self._waker.send(b"!")

    def run(self) -> None:
        """Load, then compute. Raises what `Backend.load` raises, and BackendBroken."""
        self._streams = Streams(self._limits.streams, self._take)
        background.thread(self._load, "load", background.end_process)
        self._loader = ModelLoader(
            self._models, self._backend_of, self._streams.in_turn, self._tell, self._failed
        )
        self._loader.start()
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
        """Serve the dispatcher until it has gone, or this is to stop."""
        try:
            connection = Connection(self._path)
        except Gone:
            self._beat()
            time.sleep(_TRY_EVERY_S)
            return
        connected = time.monotonic()
        try:
            with self._telling:
                held = tuple(model.told for model in self._models.all)
                connection.send(Worker(self.name, held, self._limits))
                self._connection = connection
            self._talk(connection)
        except Gone:
            now = time.monotonic()
            if self._lost.due(now) is not None:
                dropped = "; dropping its batches in progress" if self._computing else ""
                log.info("lost the connection to the dispatcher%s", dropped)
            self._beat()
            # A dispatcher that disconnects immediately does not accept this worker, because other workers
            # have other models.
            time.sleep(_TRY_EVERY_S if now > connected + _SETTLED_S else _UNWANTED_S)
        finally:
            with self._telling:
                self._connection = None
            connection.close()

    def _tell(self, what: Told) -> None:
        """Send a message to the current dispatcher. A later one is told which models are loaded."""
        if isinstance(what, ModelLoaded) and (model := self._models.get(what.held.info.name)) is not None:
            with self._watched:
                self._progress.may_take(self._limits.batch_tokens, model.full_batch_s)
        self._tell_of_memory()
        with self._telling, contextlib.suppress(Gone):
            if self._connection is not None:
                self._connection.send(what)

    def _failed(self, error: BaseException) -> None:
        """Report a failure in a thread. It ends the process, because health must not stay green."""
        self._failures.put(error)
        self._wake()

    def _talk(self, connection: Connection) -> None:
        said = time.monotonic()
        while not (self._stopping and not self._computing):
            for message in connection.receive(self._woken, _TURN_S):
                if isinstance(message, LoadModel | UnloadModel):
                    self._loader.put(message)
                    continue
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
        """Raises the exception with which a thread failed."""
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)
        if not self._failures.empty():
            raise self._failures.get()

    def _beat(self) -> None:
        """Report to the supervisor that this thread runs, and which batch has run longest."""
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
                self._models.add(backend, backend.load(self._streams.on_all))
            load_s = (time.monotonic() - began) / len(self._models)
            # Alternatively a quarter of the load time, in which several batches were computed.
            self._progress.first_s = max(load_s / 4, *(model.full_batch_s for model in self._models.all))
            show_faults()
            self._tell_of_memory()
            self._ready = True
        except BaseException as error:
            self._failures.put(error)
        self._wake()

    def _wake(self) -> None:
        self._waker.send(b"!")

    def _take(self, order: _Order) -> None:
        """Handle an order in a compute thread."""
        try:
            if isinstance(order.asked, Batch):
                self._compute(order.connection, order.asked)
            else:
                self._check(order.connection, order.asked)
        except Gone:  # the connection is gone, so nobody waits for the result
            pass
        except BackendBroken as error:  # ends the process, because it must not look healthy
            self._failures.put(error)
        with self._watched:
            self._computing -= 1
        if self._stopping or not self._failures.empty():
            self._wake()

    def _compute(self, connection: Connection, batch: Batch) -> None:
        model = self._models.get(batch.model)
        assert model is not None, batch.model
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
        report_faults(batch, computed)
        self._tell_of_memory()

    def _tell_of_memory(self) -> None:
        """Update the memory metric, for all models together, because they share the device."""
        metrics.labelled(metrics.DEVICE_MEMORY, self.name).set(self._backends[0].memory_bytes())

    def _check(self, connection: Connection, check: Check) -> None:
        """Compute an answered image without pruning, on one thread, so that new images can use the others."""
        held = next((held for held in self._held if held[0] == check.hold), None)
        label: int | None = None
        if held is not None and (model := self._models.get(held[1])) is not None:
            try:
                (prediction,) = model.backend.classify([Job(_CHECKED, held[2])], 1)
                label = prediction.classes[0]
            except Exception as error:
                raise_if_lost(error)
                log.exception("computing an image again without pruning, to measure the agreement, failed")
        connection.send(Checked(check.hold, label))
