"""Limits how often similar events are logged, because what others send must not fill the log. Pure."""

from dataclasses import dataclass


@dataclass(slots=True)
class Rarely:
    """Lets through the first event, and then at most one in this many seconds."""

    every_s: float = 60.0
    _told: float = float("-inf")
    _left_out: int = 0

    def due(self, now: float) -> int | None:
        """The number of events suppressed since the last one that was let through. None if this one is
        suppressed, too."""
        if now < self._told + self.every_s:
            self._left_out += 1
            return None
        left_out, self._told, self._left_out = self._left_out, now, 0
        return left_out
