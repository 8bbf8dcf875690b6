"""A front end's view of the dispatcher's load: some milliseconds old, and corrected by what the front end
itself has let through since. Pure: times are passed in.

It answers one question before an image is received and decoded: will the dispatcher accept it? It decides as
the dispatcher does (app.dispatch.policy.admission): an image that is let through in vain is decoded for
nothing.
"""

from dataclasses import dataclass, field

from app.dispatch.policy.admission import Ahead, Refusal, Streams, Wanted, ahead_of, refusal
from app.dispatch.policy.fair_queue import WEIGHTS
from app.messages.to_front_end import Load, Terms
from app.priority import Priority

Flow = tuple[str, Priority]  # a caller's images of one priority
_UNKNOWN = Terms()


@dataclass(slots=True)
class InFlight:
    """A flow's images that the dispatcher does not count yet, and their compute together, in unpruned images
    of the default model."""

    images: int = 0
    compute: float = 0.0

    def add(self, compute: float) -> None:
        """One image more."""
        self.images += 1
        self.compute += compute

    def remove(self, compute: float) -> None:
        """The last one leaves exactly 0: a sum of floats that came and went would not be 0, and the
        dispatcher would never seem idle again."""
        self.images -= 1
        self.compute = self.compute - compute if self.images else 0.0


@dataclass(slots=True)
class LoadPage:
    """What the dispatcher said last, and the images in flight that it did not count yet.

    What an image costs (``compute``) is in unpruned images of the default model, for which the dispatcher's
    terms come first.
    """

    load: Load | None = None
    told: float = 0.0
    _flows: dict[Flow, InFlight] = field(default_factory=dict)
    _sent: dict[int, tuple[Flow, float]] = field(default_factory=dict)
    _in_flight: InFlight = field(default_factory=InFlight)  # of all flows
    _most_told_s: float = 0.0  # of work before an image, whoever sends it

    def tell(self, load: Load, now: float) -> None:
        """What the dispatcher says: it counts all that was sent up to ``load.seen``."""
        self.load, self.told = load, now
        self._most_told_s = max(
            (*load.work_s.values(), *(work_s for _, _, work_s in load.callers)), default=0.0
        )
        for number in [number for number in self._sent if number <= load.seen]:
            self._remove(*self._sent.pop(number))

    def lost(self) -> None:
        """The dispatcher is gone, and all that it said holds no more."""
        self.load = None
        for flow, compute in self._sent.values():
            self._remove(flow, compute)
        self._sent.clear()

    def decoding(self, caller: str, priority: Priority, compute: float) -> None:
        """An image that costs so much is decoded from now on."""
        self._add((caller, priority), compute)

    def decoded(self, caller: str, priority: Priority, compute: float) -> None:
        """It no longer is."""
        self._remove((caller, priority), compute)

    def sent(self, number: int, caller: str, priority: Priority, compute: float) -> None:
        """It has gone to the dispatcher as the record with that number; perhaps not for the first time."""
        flow = (caller, priority)
        if number in self._sent:
            self._remove(*self._sent[number])
        self._sent[number] = flow, compute
        self._add(flow, compute)

    def refusal(
        self,
        caller: str,
        priority: Priority,
        share: float,
        deadline_s: float,
        wait_limit_s: float,
        now: float,
        model: str = "",
        weight: float = 1.0,
    ) -> Refusal | None:
        """What the dispatcher would answer to a further image of the caller, of that share of the model's
        compute, which is ``weight`` times the default model's; None where it has a chance. An idle
        dispatcher decides for itself."""
        if self.load is None or (self.load.idle and not self._flows):
            return None
        terms = self.load.terms.get(model, _UNKNOWN)
        if self._is_sure(self.load, terms, share, deadline_s, wait_limit_s):
            return None
        wanted = Wanted(
            terms.image_s + terms.compute_s * share,
            terms.alone_s + terms.alone_compute_s * share,
            max(1, terms.batch_tokens // max(1, round(terms.image_tokens * share))),
            deadline_s,
            wait_limit_s,
        )
        streams = self._streams(self.load, terms, now)
        ahead = self._ahead(self.load, (caller, priority), share * weight, wanted, streams, now)
        return refusal(wanted, ahead, streams)

    def _is_sure(
        self, load: Load, terms: Terms, share: float, deadline_s: float, wait_limit_s: float
    ) -> bool:
        """Whether the image would be accepted even if all that is known of were served before it: mostly it
        is, and this takes a fraction of the time that `admission` does."""
        seconds = terms.image_s + terms.compute_s * share
        if seconds <= 0:
            return False
        in_flight_s = self._in_flight.compute * _unpruned_s(load)
        # Its batch is at least as long as the image, which bounds how many overheads are before it.
        work_s = (self._most_told_s + in_flight_s) * (1 + terms.overhead_s / seconds)
        wait_s = load.free_in_s[-1] + work_s
        whole_s = wait_s + work_s + terms.overhead_s + seconds
        return wait_s <= wait_limit_s and terms.caution * whole_s <= deadline_s

    def _streams(self, load: Load, terms: Terms, now: float) -> Streams:
        passed_s = now - self.told
        free_in_s = [max(0.0, free_s - passed_s) for free_s in load.free_in_s]
        return Streams(free_in_s, False, terms.overhead_s, terms.caution)  # noqa: FBT003

    def _ahead(
        self, load: Load, flow: Flow, compute: float, wanted: Wanted, streams: Streams, now: float
    ) -> Ahead:
        """What is served before it: of what was told, what has not been started since, and of what the front
        end has let through since."""
        caller, priority = flow
        told_s = next(
            (work for name, kind, work in load.callers if (name, kind) == (caller, priority)),
            load.work_s.get(priority, 0.0),
        )
        started_s = sum(max(0.0, now - self.told - free_s) for free_s in load.free_in_s)
        work_s = max(0.0, told_s - started_s) + self._before(flow, compute) * _unpruned_s(load)
        return ahead_of(wanted, work_s, streams)

    def _before(self, flow: Flow, compute: float) -> float:
        """What of the images in flight will be served before a further one of the flow: its own, and of every
        other as much as fair shares give it meanwhile. One caller's thousand photographs are not in the way
        of another's first. See `FairQueue.work_before`."""
        own = self._flows[flow].compute if flow in self._flows else 0.0
        until, weight = own + compute, WEIGHTS[flow[1]]
        return own + sum(
            min(theirs.compute, until * WEIGHTS[other[1]] / weight)
            for other, theirs in self._flows.items()
            if other != flow
        )

    def _add(self, flow: Flow, compute: float) -> None:
        self._flows.setdefault(flow, InFlight()).add(compute)
        self._in_flight.add(compute)

    def _remove(self, flow: Flow, compute: float) -> None:
        under_way = self._flows[flow]
        under_way.remove(compute)
        self._in_flight.remove(compute)
        if not under_way.images:
            del self._flows[flow]


def _unpruned_s(load: Load) -> float:
    """What an unpruned image of the default model takes in a batch."""
    terms = next(iter(load.terms.values()), _UNKNOWN)
    return terms.image_s + terms.compute_s
