"""Requests of a front end to load or unload models that the dispatcher has not answered yet."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from app.errors import (
    InsufficientMemory,
    InternalFault,
    ModelLoadTooSlow,
    ModelNotLoadable,
    NotReady,
    Problem,
    RepositoryConflict,
    WorkerLost,
)
from app.messages.repository import ModelEntry
from app.messages.to_dispatcher import LoadModel, UnloadModel
from app.messages.to_front_end import ModelChanged

_RETRY_AFTER_S = 1.0


@dataclass(slots=True)
class AskedChanges:
    """The open requests. ``send`` sends a message to the dispatcher, and returns False if there is no
    connection. ``models``: the models that are served or may be loaded, as the dispatcher sent them."""

    send: Callable[[LoadModel | UnloadModel], bool]
    models: tuple[ModelEntry, ...] = ()
    _last_id: int = 0
    _asked: dict[int, asyncio.Future[ModelChanged]] = field(default_factory=dict)

    async def ask(self, name: str, *, load: bool) -> None:
        """Load or unload the model. Cancelling this changes nothing: a change that has begun is completed.

        Raises ModelNotLoadable, ModelLoadTooSlow, InsufficientMemory, RepositoryConflict, NotReady,
        WorkerLost or InternalFault.
        """
        self._last_id += 1
        number = self._last_id
        answered = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            if not self.send((LoadModel if load else UnloadModel)(number, name)):
                raise NotReady("the dispatcher is restarting; retry later", retry_after_s=_RETRY_AFTER_S)
            changed = await answered
        finally:
            del self._asked[number]
        if (problem := _problem_of(changed, name, load=load)) is not None:
            raise problem

    def answered(self, changed: ModelChanged) -> None:
        """Pass on the dispatcher's answer to a request."""
        answered = self._asked.get(changed.id)
        if answered is not None and not answered.done():
            answered.set_result(changed)

    def lost(self, why: str) -> None:
        """Fail all open requests, because the connection to the dispatcher has ended."""
        for answered in self._asked.values():
            if not answered.done():
                answered.set_exception(NotReady(why, retry_after_s=_RETRY_AFTER_S))


def _problem_of(changed: ModelChanged, name: str, *, load: bool) -> Problem | None:
    said = f"the model {name!r} is not {'loaded' if load else 'unloaded'}: {changed.words}"
    match changed.fault:
        case None:
            return None
        case "busy":
            return RepositoryConflict(said, retry_after_s=_RETRY_AFTER_S)
        case "default":
            return RepositoryConflict(said)
        case "no-memory":
            return InsufficientMemory(said)
        case "refused" | "differs":
            return ModelNotLoadable(said)
        case "unreadable" | "no-worker":
            return NotReady(said, retry_after_s=_RETRY_AFTER_S)
        case "too-slow":
            return ModelLoadTooSlow(said)
        case "worker-lost":
            return WorkerLost(said)
        case "fault":
            return InternalFault(said)
