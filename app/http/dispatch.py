"""What a front end needs of the dispatcher."""

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
    """In a server app.dispatch.client.DispatchClient."""

    @property
    def model(self) -> ModelInfo | None:
        """The default one; None until a worker is ready."""

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        """All that were ready last, by name, the default one first."""

    @property
    def workers(self) -> list[dict[str, object]]:
        """How each worker is."""

    @property
    def trouble(self) -> str | None:
        """Why no worker is ready, where none is expected soon."""

    async def wait_until_ready(self, within_s: float) -> ModelInfo:
        """The model, once a worker is ready; raises NotReady or QueueFull."""

    def refusal(self, expected: Expected) -> Problem | None:
        """What the dispatcher is known to answer to such an image; None where it may accept it."""

    def expecting(self, expected: Expected) -> AbstractContextManager[None]:
        """Around the decoding of an image; a Problem if it would be refused anyhow."""

    def using(self, model: ModelInfo) -> AbstractContextManager[None]:
        """Around a request for that model, which is not dropped meanwhile; raises NotFound where it was."""

    @property
    def repository(self) -> Sequence[ModelEntry]:
        """The models that are served or may be loaded while serving; none where that is not offered."""

    async def change_model(self, name: str, *, load: bool) -> None:
        """Load or unload a model of the repository, or raise a Problem."""

    def slot(self) -> AbstractContextManager[Slot]:
        """Around an image's decoding and its question: where its pixels are to be written."""

    async def classify(self, question: Question, slot: Slot) -> Answer:
        """Answer the image in that slot or raise a Problem."""
