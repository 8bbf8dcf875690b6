"""A process's heartbeat: a few bytes shared with the supervisor, which sees from them that the process works.

A file mapped into both processes: writing costs nothing, and a reader need not wait for anybody.
"""

import mmap
import struct
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path

_LAYOUT = struct.Struct("<QQd?")

# A batch is given so many times what it is expected to take before the worker counts as hung: a machine may
# be slow for a while. What may go wrong with very short batches is covered by a floor beside it.
PATIENCE = 10.0
_FORGET = 0.98


@dataclass(frozen=True, slots=True)
class Beat:
    """What a process says of itself. ``turns`` of its main loop so far; ``batch``: the number of the one that
    has run longest, 0 for none, and the seconds that it may take; ``ready``: a worker's model is loaded, an
    HTTP process's loop runs."""

    turns: int = 0
    batch: int = 0
    allowed_s: float = 0.0
    ready: bool = False


class Heartbeat:
    """One process's beats, written by it and read by the supervisor."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError if nobody made it."""
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _LAYOUT.size)

    @classmethod
    def made_at(cls, path: Path) -> "Heartbeat":
        """A new one, at rest; a process that still has the old one cannot touch it."""
        path.unlink(missing_ok=True)
        path.write_bytes(bytes(_LAYOUT.size))
        return cls(path)

    def write(self, beat: Beat) -> None:
        """Tell the supervisor."""
        _LAYOUT.pack_into(self._shared, 0, beat.turns, beat.batch, beat.allowed_s, beat.ready)

    def read(self) -> Beat:
        """The last beat."""
        return Beat(*_LAYOUT.unpack_from(self._shared))


@dataclass(slots=True)
class Progress:
    """Which batches run, and how long each may. Pure: the caller says what happens.

    What a batch will take is foretold from the slowest tokens seen, which are forgotten slowly; before the
    first batch has ended, it is ``first_s``.
    """

    floor_s: float
    first_s: float = 0.0
    _slowest: float | None = None
    _number: int = 0
    _running: dict[Hashable, tuple[int, float]] = field(default_factory=dict)

    def began(self, batch: Hashable, tokens: int) -> None:
        """A batch of this weight has been started."""
        expected_s = self.first_s if self._slowest is None else self._slowest * tokens
        self._number += 1
        self._running[batch] = (self._number, self.floor_s + PATIENCE * expected_s)

    def ended(self, batch: Hashable, tokens: int, seconds: float) -> None:
        """It is done, and took so long."""
        del self._running[batch]
        self._slowest = max(seconds / tokens, _FORGET * (self._slowest or 0.0))

    def may_take(self, tokens: int, seconds: float) -> None:
        """Batches of this weight may take so long from now on, as those of another model."""
        self._slowest = max(seconds / tokens, self._slowest or 0.0)

    @property
    def oldest(self) -> tuple[int, float]:
        """Number of the batch that has run longest, and the seconds that it may take; (0, 0) without one."""
        return next(iter(self._running.values()), (0, 0.0))
