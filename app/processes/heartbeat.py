"""A process's heartbeat: a few bytes shared with the supervisor, which show that the process works.

It is a file mapped into both processes: writing costs nothing, and reading does not wait.
"""

import mmap
import struct
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path

_LAYOUT = struct.Struct("<QQd?")

# A worker counts as hung when a batch takes this many times the expected time, because a machine may be slow
# temporarily. A separate minimum covers very short batches.
PATIENCE = 10.0
_FORGET = 0.98


@dataclass(frozen=True, slots=True)
class Beat:
    """The content of a heartbeat. ``turns``: of the main loop so far. ``batch``: the number of the batch that
    has run longest, 0 for none, and the seconds that it may take. ``ready``: a worker's model is loaded, or
    an HTTP process's loop runs."""

    turns: int = 0
    batch: int = 0
    allowed_s: float = 0.0
    ready: bool = False


class Heartbeat:
    """The heartbeat of one process, written by it and read by the supervisor."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises FileNotFoundError if it has not been created."""
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _LAYOUT.size)

    @classmethod
    def made_at(cls, path: Path) -> "Heartbeat":
        """Create a new one. A process that still has the old one cannot change it."""
        path.unlink(missing_ok=True)
        path.write_bytes(bytes(_LAYOUT.size))
        return cls(path)

    def write(self, beat: Beat) -> None:
        """Write a beat."""
        _LAYOUT.pack_into(self._shared, 0, beat.turns, beat.batch, beat.allowed_s, beat.ready)

    def read(self) -> Beat:
        """Read the last beat."""
        return Beat(*_LAYOUT.unpack_from(self._shared))


@dataclass(slots=True)
class Progress:
    """Which batches run, and how long each may take. Pure: the caller reports events.

    The time of a batch is predicted from the slowest recent time per token, which slowly decays. Before the
    first batch has ended, it is ``first_s``.
    """

    floor_s: float
    first_s: float = 0.0
    _slowest: float | None = None
    _number: int = 0
    _running: dict[Hashable, tuple[int, float]] = field(default_factory=dict)

    def began(self, batch: Hashable, tokens: int) -> None:
        """A batch of this weight has started."""
        expected_s = self.first_s if self._slowest is None else self._slowest * tokens
        self._number += 1
        self._running[batch] = (self._number, self.floor_s + PATIENCE * expected_s)

    def ended(self, batch: Hashable, tokens: int, seconds: float) -> None:
        """The batch has ended and took this long."""
        del self._running[batch]
        self._slowest = max(seconds / tokens, _FORGET * (self._slowest or 0.0))

    def may_take(self, tokens: int, seconds: float) -> None:
        """Batches of this weight may take this long from now on, for example those of another model."""
        self._slowest = max(seconds / tokens, self._slowest or 0.0)

    @property
    def oldest(self) -> tuple[int, float]:
        """The number of the batch that has run longest, and the seconds that it may take; (0, 0) without
        one."""
        return next(iter(self._running.values()), (0, 0.0))
