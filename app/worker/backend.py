"""The interface of what a worker computes with. See app.worker.torch_backend for the real one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from app.messages.capacity import Limits, Measured
from app.messages.image import Ask, Prediction
from app.messages.model import ModelInfo
from app.worker.streams import OnAll


@dataclass(frozen=True, slots=True)
class Job:
    """One image to compute. ``pixels`` are the model's input, height x width x 3, flattened. They may be in
    shared memory and are read once."""

    ask: Ask
    pixels: UInt8[np.ndarray, " bytes"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is loaded and warmed up, its limits, and the batch times of the warm-up."""

    info: ModelInfo
    limits: Limits
    measured: tuple[Measured, ...]


class Backend(Protocol):
    """Computes within its ``limits``."""

    limits: Limits

    def load(self, on_all: OnAll) -> Loaded:
        """Load, and warm up on the threads that will call `classify`. An exception ends the worker."""

    def classify(self, jobs: Sequence[Job], threads: int) -> Sequence[Prediction]:
        """One result for each job, in order. Only called from compute threads."""

    def memory_bytes(self) -> int:
        """Memory in use on the device."""
