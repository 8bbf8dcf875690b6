"""Durations that can only be predicted from earlier ones. Pure data.

Mean and mean deviation, each smoothed exponentially, like round-trip times in TCP (RFC 6298, section 2).
"""

from dataclasses import dataclass

_OF_MEAN = 1 / 8
_OF_DEVIATION = 1 / 4
_DEVIATIONS = 4.0
_MOST_OF_DEADLINE = 0.25


@dataclass(slots=True)
class Smoothed:
    """Mean and mean deviation, in seconds; 0 before the first duration."""

    mean: float = 0.0
    deviation: float = 0.0
    _begun: bool = False

    def observe(self, seconds: float) -> None:
        """Add a duration."""
        if not self._begun:
            self._begun, self.mean, self.deviation = True, seconds, seconds / 2
            return
        self.deviation += _OF_DEVIATION * (abs(seconds - self.mean) - self.deviation)
        self.mean += _OF_MEAN * (seconds - self.mean)

    @property
    def most(self) -> float:
        """A time that hardly any of the next durations will exceed."""
        return self.mean + _DEVIATIONS * self.deviation

    def allowance_s(self, deadline_s: float) -> float:
        """The part of the time until a deadline to reserve for the next duration: at most a quarter, because
        a prediction must not keep out all images. Only images that are admitted can correct it."""
        return min(self.most, _MOST_OF_DEADLINE * deadline_s)
