"""The capacity of a worker: its limits, and the batches that it measured."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What one worker may run at the same time: at most ``streams`` batches, on ``threads`` compute threads
    together, each of at most ``batch_tokens`` tokens."""

    batch_tokens: int
    threads: int
    streams: int

    def __post_init__(self) -> None:
        if min(self.batch_tokens, self.threads, self.streams) < 1:
            raise ValueError(f"limits must be at least 1: {self}")
        if self.streams > self.threads:
            raise ValueError(f"{self.streams} streams need as many threads, got {self.threads}")

    @property
    def stream_threads(self) -> int:
        """The threads of a batch while others run at the same time."""
        return max(1, self.threads // self.streams)


@dataclass(frozen=True, slots=True)
class Work:
    """The contents of a batch. ``compute`` is in unpruned images."""

    images: int
    compute: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.images + other.images, self.compute + other.compute)


@dataclass(frozen=True, slots=True)
class Measured:
    """A batch that was computed, with its number of threads and its seconds."""

    threads: int
    work: Work
    seconds: float

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds must be above 0 and finite, got {self.seconds}")
