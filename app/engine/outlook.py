"""A front end's view of an engine's load: stale by some milliseconds, and put right by what the front end
itself has let through since. Pure: times are passed in.

It answers one question before an image is received and decoded: will the engine accept it? It reckons as the
engine does: what it let through in vain would be decoded with the time that the engine computes with.
"""

import math
from dataclasses import dataclass, field

from app.engine.messages import Load, Priority
from app.engine.spare import batch_s, mates_s, spare_s


@dataclass(slots=True)
class Outlook:
    """What the engine said last, and the images under way that it did not count yet."""

    load: Load | None = None
    told: float = 0.0
    _decoding: int = 0
    _decoding_share: float = 0.0
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
        """An image that costs that share of an unpruned one is decoded from now on."""
        self._decoding += 1
        self._decoding_share += share

    def decoded(self, share: float) -> None:
        """It no longer is. The last one leaves exactly nothing: sums of floats that came and went would not
        be 0, and the engine never idle again."""
        self._decoding -= 1
        self._decoding_share = self._decoding_share - share if self._decoding else 0.0

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
        return max(0.0, told - (now - self.told)) + self._under_way * self.load.image_s

    @property
    def _under_way(self) -> float:
        return self._decoding_share + sum(self._sent.values())

    def refuses(
        self,
        caller: str,
        priority: Priority,
        share: float,
        deadline_s: float,
        wait_limit_s: float,
        now: float,
    ) -> float | None:
        """None where an image of that share of compute has a chance; otherwise the seconds until it has,
        infinite where it has none even when nothing waits. An idle engine decides for itself."""
        if self.load is None or (self.load.idle and not self._under_way):
            return None
        wait = self.wait_s(caller, priority, now)
        terms = self.load.terms
        image = terms.image_s + terms.compute_s * share
        own = terms.overhead_s + image
        if terms.caution * min(own, terms.alone_s + terms.alone_compute_s * share) > deadline_s:
            return math.inf
        batch = batch_s(image, max(1.0, terms.batch_compute // share), deadline_s)
        running = min(wait, max(0.0, self.load.running_s - (now - self.told)))
        queued = wait - running
        if batch > 0:  # every batch before it has its overhead
            queued += queued * terms.overhead_s / batch
            wait = running + queued
        spare = spare_s(deadline_s, own + mates_s(image, batch, queued), terms.caution, wait_limit_s)
        return wait - max(0.0, spare) if wait > spare else None
