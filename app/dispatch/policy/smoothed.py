"""Durations that cannot be predicted from anything but themselves: what the last ones were like. Pure data.

Mean and mean deviation, each smoothed exponentially, as TCP smooths round trips (RFC 6298, section 2).
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
        """One duration more."""
        if not self._begun:
            self._begun, self.mean, self.deviation = True, seconds, seconds / 2
            return
        self.deviation += _OF_DEVIATION * (abs(seconds - self.mean) - self.deviation)
        self.mean += _OF_MEAN * (seconds - self.mean)

    @property
    def most(self) -> float:
        """What hardly any of the next ones will exceed."""
        return self.mean + _DEVIATIONS * self.deviation

    def allowance_s(self, deadline_s: float) -> float:
        """What to leave for the next one of that time until a deadline: a quarter at most, for a prediction
        must not shut out all images. Only images that are let through can put it right."""
        return min(self.most, _MOST_OF_DEADLINE * deadline_s)
