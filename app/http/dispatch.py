"""The interface of the dispatcher that a front end uses."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from app.dispatch.questions import Expected, Question
from app.dispatch.slot import Slot
from app.errors import Problem
from app.messages.model import ModelInfo
from app.messages.repository import ModelEntry
from app.messages.to_front_end import Answer


class Dispatch(Protocol):
    """In a server, this is app.dispatch.client.DispatchClient."""

    @property
    def model(self) -> ModelInfo | None:
        """The default model. None until a worker is ready."""

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        """The models that were ready last, by name, the default one first."""

    @property
    def workers(self) -> list[dict[str, object]]:
        """The state of each worker."""

    @property
    def trouble(self) -> str | None:
        """Why no worker is ready, if none is expected soon."""

    async def wait_until_ready(self, within_s: float) -> ModelInfo:
        """The model, once a worker is ready. Raises NotReady or QueueFull."""

    def refusal(self, expected: Expected) -> Problem | None:
        """The refusal that is certain for such an image. None if it may be accepted."""

    def expecting(self, expected: Expected) -> AbstractContextManager[None]:
        """A context manager around the decoding of an image. Raises a Problem if it would be refused
        anyway."""

    def using(self, model: ModelInfo) -> AbstractContextManager[None]:
        """A context manager for a request for that model, which is kept meanwhile. Raises NotFound if it is
        not served any more."""

    @property
    def repository(self) -> Sequence[ModelEntry]:
        """The models that are served or may be loaded while serving. Empty if that is not enabled."""

    async def change_model(self, name: str, *, load: bool) -> None:
        """Load or unload a model of the repository. Raises a Problem."""

    def slot(self) -> AbstractContextManager[Slot]:
        """A context manager from the decoding of an image to its answer: a slot for its pixels."""

    async def classify(self, question: Question, slot: Slot) -> Answer:
        """The answer for the image in that slot. Raises a Problem."""
