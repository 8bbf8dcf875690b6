"""When a process that has exited is started again. Pure policy: no clock, no processes."""

from dataclasses import dataclass

# Minimum time between starts, by the number of consecutive short lives. The first restart is immediate.
_SPACING_S = (0.0, 1.0, 2.0, 5.0, 10.0)
_READY_SPACING_S = 2.0  # maximum if the start had succeeded; a restart takes a second
_SHORT_S = 10.0
STARTS_BEFORE_GIVING_UP = 5


@dataclass(slots=True)
class Restarts:
    """The history of one process. ``slow_s``: the seconds between starts after several failures in a row."""

    slow_s: float
    failed_starts: int = 0
    _short_lives: int = 0

    @property
    def given_up(self) -> bool:
        """Whether so many starts have failed in a row that further ones are slow."""
        return self.failed_starts >= STARTS_BEFORE_GIVING_UP

    def came_up(self) -> None:
        """The process is ready."""
        self.failed_starts = 0

    def ended(self, lived_s: float, *, was_ready: bool) -> float:
        """The process has ended. Returns the seconds to wait before the next start."""
        self.failed_starts = 0 if was_ready else self.failed_starts + 1
        spacing_s = _SPACING_S[min(self._short_lives, len(_SPACING_S) - 1)]
        pause_s = max(0.0, (min(spacing_s, _READY_SPACING_S) if was_ready else spacing_s) - lived_s)
        self._short_lives = self._short_lives + 1 if lived_s < _SHORT_S else 0
        return self.slow_s if self.given_up else pause_s
