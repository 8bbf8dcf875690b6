"""A front end's view of the dispatcher's load: some milliseconds old, and corrected by what the front end
itself has let through since. Pure: times are passed in.

It answers one question before an image is received and decoded: will the dispatcher accept it? It calculates
as the dispatcher does: an image that is let through in vain is decoded for nothing.
"""

import math
from dataclasses import dataclass, field

from app.dispatch.policy.fair_queue import WEIGHTS
from app.dispatch.policy.spare import batch_s, batch_slack_s, spare_s
from app.messages.to_front_end import Load
from app.priority import Priority

Flow = tuple[str, Priority]  # a caller's images of one priority


@dataclass(slots=True)
class InFlight:
    """A flow's images that the dispatcher does not count yet, and their shares of compute together."""

    images: int = 0
    share: float = 0.0

    def add(self, share: float) -> None:
        """One image more."""
        self.images += 1
        self.share += share

    def remove(self, share: float) -> None:
        """The last one leaves exactly 0: a sum of floats that came and went would not be 0, and the
        dispatcher would never seem idle again."""
        self.images -= 1
        self.share = self.share - share if self.images else 0.0


@dataclass(slots=True)
class LoadPage:
    """What the dispatcher said last, and the images in flight that it did not count yet."""

    load: Load | None = None
    told: float = 0.0
    _flows: dict[Flow, InFlight] = field(default_factory=dict)
    _sent: dict[int, tuple[Flow, float]] = field(default_factory=dict)

    def tell(self, load: Load, now: float) -> None:
        """What the dispatcher says: it counts all that was sent up to ``load.seen``."""
        self.load, self.told = load, now
        for number in [number for number in self._sent if number <= load.seen]:
            self._remove(*self._sent.pop(number))

    def lost(self) -> None:
        """The dispatcher is gone, and all that it said holds no more."""
        self.load = None
        for flow, share in self._sent.values():
            self._remove(flow, share)
        self._sent.clear()

    def decoding(self, caller: str, priority: Priority, share: float) -> None:
        """An image that costs that share of an unpruned one is decoded from now on."""
        self._add((caller, priority), share)

    def decoded(self, caller: str, priority: Priority, share: float) -> None:
        """It no longer is."""
        self._remove((caller, priority), share)

    def sent(self, number: int, caller: str, priority: Priority, share: float) -> None:
        """It has gone to the dispatcher as the record with that number; perhaps not for the first time."""
        flow = (caller, priority)
        if number in self._sent:
            self._remove(*self._sent[number])
        self._sent[number] = flow, share
        self._add(flow, share)

    def wait_s(self, caller: str, priority: Priority, share: float, now: float) -> float:
        """How long a further image of the caller, of that share of compute, is predicted to wait; 0 where
        nothing is known."""
        if self.load is None:
            return 0.0
        told = next(
            (wait for name, kind, wait in self.load.callers if (name, kind) == (caller, priority)),
            self.load.wait_s.get(priority, 0.0),
        )
        before = self._before((caller, priority), share)
        return max(0.0, told - (now - self.told)) + before * self.load.image_s

    def _before(self, flow: Flow, share: float) -> float:
        """What of the images in flight will be served before a further one of the flow: its own, and of every
        other as much as fair shares give it meanwhile. One caller's thousand photographs are not in the way
        of another's first. See `FairQueue.work_before`."""
        own = self._flows[flow].share if flow in self._flows else 0.0
        until, weight = own + share, WEIGHTS[flow[1]]
        return own + sum(
            min(theirs.share, until * WEIGHTS[other[1]] / weight)
            for other, theirs in self._flows.items()
            if other != flow
        )

    def _add(self, flow: Flow, share: float) -> None:
        self._flows.setdefault(flow, InFlight()).add(share)

    def _remove(self, flow: Flow, share: float) -> None:
        under_way = self._flows[flow]
        under_way.remove(share)
        if not under_way.images:
            del self._flows[flow]

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
        infinite where it has none even when nothing waits. An idle dispatcher decides for itself."""
        if self.load is None or (self.load.idle and not self._flows):
            return None
        wait = self.wait_s(caller, priority, share, now)
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
        spare = spare_s(deadline_s, own + batch_slack_s(image, batch, queued), terms.caution, wait_limit_s)
        return wait - max(0.0, spare) if wait > spare else None
