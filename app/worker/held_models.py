"""The models that a worker holds. Any thread may ask; what computes a batch keeps what it was given."""

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
    """What computes the model, what reads the slots of its images, and an image that it can compute."""

    backend: Backend
    loaded: Loaded
    read_slot: ReadSlot
    harmless: Job

    @property
    def told(self) -> Held:
        """As the dispatcher is told of it."""
        return Held(self.loaded.info, self.loaded.measured)

    @property
    def full_batch_s(self) -> float:
        """What a full batch of unpruned images may be expected to take, by the slowest that was measured."""
        arch = self.loaded.info.architecture
        images = max(1, self.loaded.limits.batch_tokens // (arch.patches + arch.prefix_tokens))
        return images * max(batch.seconds / batch.work.compute for batch in self.loaded.measured)


@dataclass(slots=True)
class HeldModels:
    """By name, the default one first. ``slots`` gives the reader of slots with images of so many bytes."""

    slots: Callable[[int], ReadSlot]
    _models: dict[str, HeldModel] = field(default_factory=dict)
    _changing: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self._models)

    def add(self, backend: Backend, loaded: Loaded) -> HeldModel:
        """It is held from now on."""
        reader = self.slots(loaded.info.pixel_bytes)
        model = HeldModel(backend, loaded, reader, _blank(loaded))
        with self._changing:
            self._models[loaded.info.name] = model
        return model

    def drop(self, name: str) -> None:
        """It is not held any more; it need not be."""
        with self._changing:
            self._models.pop(name, None)

    def get(self, name: str) -> HeldModel | None:
        """The model of that name; None if it is not held."""
        return self._models.get(name)

    @property
    def all(self) -> list[HeldModel]:
        """In the order in which they came."""
        with self._changing:
            return list(self._models.values())


def _blank(loaded: Loaded) -> Job:
    """An image that every sound backend can compute."""
    ask = Ask(pruning=UNPRUNED, top_k=1, features=not loaded.info.labels)
    return Job(ask, np.zeros(loaded.info.pixel_bytes, np.uint8))
