"""Which of many alike events are told in the log: what somebody else sends amiss must not fill it. Pure."""

from dataclasses import dataclass


@dataclass(slots=True)
class Rarely:
    """Reports the first event, and then at most one in so many seconds."""

    every_s: float = 60.0
    _told: float = float("-inf")
    _left_out: int = 0

    def due(self, now: float) -> int | None:
        """How many were left out since the last that was told; None if this one is left out, too."""
        if now < self._told + self.every_s:
            self._left_out += 1
            return None
        left_out, self._told, self._left_out = self._left_out, now, 0
        return left_out
