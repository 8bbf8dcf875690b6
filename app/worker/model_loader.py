"""Loads and unloads models of a worker while others are served, in a thread of its own, one after the other.
The streams are used by turns (`Streams.in_turn`), so batches continue."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

from app.messages.repository import LoadFault
from app.messages.to_dispatcher import ModelLoaded, ModelNotLoaded, ModelUnloaded
from app.messages.to_worker import LoadModel, UnloadModel
from app.processes import background
from app.worker.backend import Backend
from app.worker.device_errors import is_out_of_memory
from app.worker.held_models import HeldModels
from app.worker.parts import BackendBroken, raise_if_lost
from app.worker.streams import OnAll

log = logging.getLogger(__name__)

Told = ModelLoaded | ModelNotLoaded | ModelUnloaded


R = TypeVar("R")


class NoRoom(Exception):
    """There is not enough memory for a model. The text has the numbers."""


class _GivenUp(Exception):
    """The dispatcher no longer waits for this load."""


@dataclass(slots=True)
class _Thread:
    """The state of one thread. ``loading``: the model that it loads now. ``given_up``: it took too long,
    another thread continues, and this one ends when it can."""

    messages: "SimpleQueue[LoadModel | UnloadModel]" = field(default_factory=SimpleQueue)
    loading: str | None = None
    given_up: bool = False


@dataclass(slots=True)
class ModelLoader:
    """``backend_of`` returns the backend of a model by its name, and raises NoRoom if there is not enough
    memory for it. ``tell`` is called with the result of each message, and ``failed`` with an error that ends
    the process.

    A thread that hangs cannot be ended. Unloading the model that it loads gives it up: it is left alone, and
    a new thread takes its place.
    """

    models: HeldModels
    backend_of: Callable[[str], Backend]
    in_turn: OnAll
    tell: Callable[[Told], None]
    failed: Callable[[BaseException], None]
    _thread: _Thread = field(default_factory=_Thread)
    _changing: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Start the thread."""
        background.thread(partial(self._run, self._thread), "model loader", background.end_process)

    def put(self, message: LoadModel | UnloadModel) -> None:
        """Handle the message after the earlier ones."""
        with self._changing:
            hung = self._thread
            if isinstance(message, UnloadModel) and message.name == hung.loading:
                log.error("giving up loading the model %s, because it takes too long", message.name)
                hung.given_up, self._thread = True, _Thread()
                while not hung.messages.empty():
                    self._thread.messages.put(hung.messages.get())
                self.start()
            self._thread.messages.put(message)

    def _run(self, thread: _Thread) -> None:
        while not thread.given_up:
            message = thread.messages.get()
            try:
                if isinstance(message, LoadModel):
                    told = self._loaded(message.name, thread)
                    if told is not None:
                        self.tell(told)
                else:
                    self.models.drop(message.name)
                    log.info("unloaded the model %s", message.name)
                    self.tell(ModelUnloaded(message.name))
            except BackendBroken as error:
                self.failed(error)

    def _loaded(self, name: str, thread: _Thread) -> ModelLoaded | ModelNotLoaded | None:
        """The result of the load. None if it was given up meanwhile."""

        def in_turn(work: Callable[[int], R]) -> list[R]:
            def unless_given_up(index: int) -> R:
                if thread.given_up:
                    raise _GivenUp
                return work(index)

            return self.in_turn(unless_given_up)

        if (held := self.models.get(name)) is not None:
            return ModelLoaded(held.told)
        log.info("loading the model %s in addition to the others", name)
        with self._changing:
            thread.loading = name
        try:
            backend = self.backend_of(name)
            loaded = backend.load(in_turn)
            with self._changing:
                if thread.given_up:
                    raise _GivenUp
                model = self.models.add(backend, loaded)
        except _GivenUp:
            log.info("stopped loading the model %s, which was given up", name)
            return None
        except Exception as error:
            fault = _fault(error)
            log.log(
                logging.ERROR,
                "cannot load the model %s: %s",
                name,
                error,
                exc_info=error if fault == "fault" else None,
            )
            raise_if_lost(error)
            if thread.given_up:
                return None
            words = f"{type(error).__name__}, see the worker's log" if fault == "fault" else str(error)
            return ModelNotLoaded(name, fault, words)
        finally:
            with self._changing:
                thread.loading = None
        return ModelLoaded(model.told)


def _fault(error: Exception) -> LoadFault:
    if isinstance(error, NoRoom) or is_out_of_memory(error):
        return "no-memory"
    if isinstance(error, OSError):
        return "unreadable"
    return "refused" if isinstance(error, ValueError) else "fault"
