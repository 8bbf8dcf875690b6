"""Loads and unloads models of a worker that serves others meanwhile, in a thread of its own, one after the
other. The streams are used by turns (`Streams.in_turn`), so that batches go on."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

from app.messages.repository import LoadFault
from app.messages.to_dispatcher import ModelLoaded, ModelNotLoaded, ModelUnloaded
from app.messages.to_worker import LoadModel, UnloadModel
from app.processes import background
from app.worker.backend import Backend
from app.worker.device_errors import is_out_of_memory
from app.worker.held_models import HeldModels
from app.worker.parts import BackendBroken, refuse_lost
from app.worker.streams import OnAll

log = logging.getLogger(__name__)

Told = ModelLoaded | ModelNotLoaded | ModelUnloaded


class NoRoom(Exception):
    """There is not enough memory for a model; the text has the numbers."""


@dataclass(slots=True)
class ModelLoader:
    """``backend_of`` gives the backend of a model by its name, and raises NoRoom where there is not the
    memory for it; ``tell`` is given what came of each message, and ``failed`` what ends the process."""

    models: HeldModels
    backend_of: Callable[[str], Backend]
    in_turn: OnAll
    tell: Callable[[Told], None]
    failed: Callable[[BaseException], None]
    _messages: "SimpleQueue[LoadModel | UnloadModel]" = field(default_factory=SimpleQueue)

    def start(self) -> None:
        """In its thread."""
        background.thread(self._run, "model loader", background.end_process)

    def put(self, message: LoadModel | UnloadModel) -> None:
        """Do that after what came before."""
        self._messages.put(message)

    def _run(self) -> None:
        while True:
            message = self._messages.get()
            try:
                if isinstance(message, LoadModel):
                    self.tell(self._loaded(message.name))
                else:
                    self.models.drop(message.name)
                    log.info("unloaded %s", message.name)
                    self.tell(ModelUnloaded(message.name))
            except BackendBroken as error:
                self.failed(error)

    def _loaded(self, name: str) -> ModelLoaded | ModelNotLoaded:
        if (held := self.models.get(name)) is not None:
            return ModelLoaded(held.told)
        log.info("loading %s beside the other models", name)
        try:
            backend = self.backend_of(name)
            model = self.models.add(backend, backend.load(self.in_turn))
        except Exception as error:
            fault = _fault(error)
            log.log(
                logging.ERROR, "cannot load %s: %s", name, error, exc_info=error if fault == "fault" else None
            )
            refuse_lost(error)
            words = f"{type(error).__name__}, see the worker's log" if fault == "fault" else str(error)
            return ModelNotLoaded(name, fault, words)
        return ModelLoaded(model.told)


def _fault(error: Exception) -> LoadFault:
    if isinstance(error, NoRoom) or is_out_of_memory(error):
        return "no-memory"
    if isinstance(error, OSError):
        return "unreadable"
    return "refused" if isinstance(error, ValueError) else "fault"
