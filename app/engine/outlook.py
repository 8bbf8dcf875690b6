"""A front end's view of an engine's load: stale by some milliseconds, and put right by what the front end
itself has let through since. Pure: times are passed in.

It answers one question before an image is decoded: has it any chance? It errs towards letting images through,
for the engine decides.
"""

from dataclasses import dataclass, field

from app.engine.messages import Load, Priority

_SLACK = 0.9  # of the predicted wait, what an image must be able to wait: what is told here is not quite new


@dataclass(slots=True)
class Outlook:
    """What the engine said last, and the images under way that it did not count yet."""

    load: Load | None = None
    told: float = 0.0
    _decoding: float = 0.0
    _sent: dict[int, float] = field(default_factory=dict)

    def tell(self, load: Load, now: float) -> None:
        """The engine's word: it counts all that was sent up to ``load.seen``."""
        self.load, self.told = load, now
        self._sent = {number: share for number, share in self._sent.items() if number > load.seen}

    def lost(self) -> None:
        """The engine is gone, and with it all that was said of it."""
        self.load = None
        self._sent.clear()

    def decoding(self, share: float) -> None:
        """An image that costs that share of an unpruned one is decoded, or (negative) no longer."""
        self._decoding += share

    def sent(self, number: int, share: float) -> None:
        """It has gone to the engine as that Submit."""
        self._sent[number] = share

    def wait_s(self, caller: str, priority: Priority, now: float) -> float:
        """How long a further image of the caller is predicted to wait; 0 where nothing is known."""
        if self.load is None:
            return 0.0
        told = next(
            (wait for name, kind, wait in self.load.callers if (name, kind) == (caller, priority)),
            self.load.wait_s.get(priority, 0.0),
        )
        under_way = self._decoding + sum(self._sent.values())
        return max(0.0, told - (now - self.told)) + under_way * self.load.image_s

    def refuses(self, caller: str, priority: Priority, allowed_s: float, now: float) -> float | None:
        """None where an image that may wait so long has a chance; otherwise the seconds until it has."""
        missing = _SLACK * self.wait_s(caller, priority, now) - allowed_s
        return missing if missing > 0 else None
