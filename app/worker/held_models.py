"""The loaded models of a worker. Any thread may read them; a batch in progress keeps its model."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from app.messages.image import Ask
from app.messages.slots import ReadSlot
from app.messages.to_dispatcher import Held
from app.worker.backend import Backend, Job, Loaded
from models.schedule import UNPRUNED


@dataclass(frozen=True, slots=True)
class HeldModel:
    """A loaded model: its backend, the reader of its images' slots, and an image that it can compute."""

    backend: Backend
    loaded: Loaded
    read_slot: ReadSlot
    harmless: Job

    @property
    def told(self) -> Held:
        """Its description for the dispatcher."""
        return Held(self.loaded.info, self.loaded.measured)

    @property
    def full_batch_s(self) -> float:
        """The expected time of a full batch of unpruned images, from the slowest measurement."""
        arch = self.loaded.info.architecture
        images = max(1, self.loaded.limits.batch_tokens // (arch.patches + arch.prefix_tokens))
        return images * max(batch.seconds / batch.work.compute for batch in self.loaded.measured)


@dataclass(slots=True)
class HeldModels:
    """The models by name, the default one first. ``slots`` returns the reader of slots for images with this
    many bytes."""

    slots: Callable[[int], ReadSlot]
    _models: dict[str, HeldModel] = field(default_factory=dict)
    _changing: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self._models)

    def add(self, backend: Backend, loaded: Loaded) -> HeldModel:
        """Add a model."""
        reader = self.slots(loaded.info.pixel_bytes)
        model = HeldModel(backend, loaded, reader, _blank(loaded))
        with self._changing:
            self._models[loaded.info.name] = model
        return model

    def drop(self, name: str) -> None:
        """Remove a model, if it is there."""
        with self._changing:
            self._models.pop(name, None)

    def get(self, name: str) -> HeldModel | None:
        """The model of that name. None if it is not loaded."""
        return self._models.get(name)

    @property
    def all(self) -> list[HeldModel]:
        """All models, in the order in which they were added."""
        with self._changing:
            return list(self._models.values())


def _blank(loaded: Loaded) -> Job:
    """An image that every working backend can compute."""
    ask = Ask(pruning=UNPRUNED, top_k=1, features=not loaded.info.labels)
    return Job(ask, np.zeros(loaded.info.pixel_bytes, np.uint8))
