"""A front end's view of the dispatcher's load: some milliseconds old, and corrected by what the front end
itself has admitted since. Pure: times are passed in.

It answers one question before an image is received and decoded: will the dispatcher accept it? It decides as
the dispatcher does (app.dispatch.policy.admission). An image that is admitted wrongly is decoded for nothing.
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
    """The images of a flow that the dispatcher does not count yet, and their total compute, in unpruned
    images of the default model."""

    images: int = 0
    compute: float = 0.0

    def add(self, compute: float) -> None:
        """Add an image."""
        self.images += 1
        self.compute += compute

    def remove(self, compute: float) -> None:
        """Remove an image. After the last one the sum is exactly 0: a sum of floats that were added and
        subtracted would not be, and the dispatcher would never seem idle again."""
        self.images -= 1
        self.compute = self.compute - compute if self.images else 0.0


@dataclass(slots=True)
class LoadPage:
    """The last load that the dispatcher sent, and the images in flight that it did not count yet.

    The cost of an image (``compute``) is in unpruned images of the default model, whose terms are the first
    that the dispatcher sends.
    """

    load: Load | None = None
    told: float = 0.0
    _flows: dict[Flow, InFlight] = field(default_factory=dict)
    _sent: dict[int, tuple[Flow, float]] = field(default_factory=dict)
    _in_flight: InFlight = field(default_factory=InFlight)  # of all flows
    _most_told_s: float = 0.0  # maximum work ahead of an image of any caller

    def tell(self, load: Load, now: float) -> None:
        """Store the dispatcher's load, which counts everything that was sent up to ``load.seen``."""
        self.load, self.told = load, now
        self._most_told_s = max(
            (*load.work_s.values(), *(work_s for _, _, work_s in load.callers)), default=0.0
        )
        for number in [number for number in self._sent if number <= load.seen]:
            self._remove(*self._sent.pop(number))

    def lost(self) -> None:
        """Forget the load, because the dispatcher is gone."""
        self.load = None
        for flow, compute in self._sent.values():
            self._remove(flow, compute)
        self._sent.clear()

    def decoding(self, caller: str, priority: Priority, compute: float) -> None:
        """Count an image with this cost as being decoded."""
        self._add((caller, priority), compute)

    def decoded(self, caller: str, priority: Priority, compute: float) -> None:
        """Count it as decoded."""
        self._remove((caller, priority), compute)

    def sent(self, number: int, caller: str, priority: Priority, compute: float) -> None:
        """Count it as sent to the dispatcher, as the record with that number. It may have been sent
        before."""
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
        """The dispatcher's expected refusal of another image of the caller, with this share of the model's
        compute, which is ``weight`` times the default model's. None if the image may be accepted. An idle
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
        """Whether the image would be accepted even if all known work were served before it. This is true for
        most images, and takes a fraction of the time of `admission`."""
        seconds = terms.image_s + terms.compute_s * share
        if seconds <= 0:
            return False
        in_flight_s = self._in_flight.compute * _unpruned_s(load)
        # A batch takes at least as long as one image, which limits the number of overheads ahead of it.
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
        """The work that is served before the image: of the dispatcher's load, what has not been started
        since, and of this front end's images, those since then."""
        caller, priority = flow
        told_s = next(
            (work for name, kind, work in load.callers if (name, kind) == (caller, priority)),
            load.work_s.get(priority, 0.0),
        )
        started_s = sum(max(0.0, now - self.told - free_s) for free_s in load.free_in_s)
        work_s = max(0.0, told_s - started_s) + self._before(flow, compute) * _unpruned_s(load)
        return ahead_of(wanted, work_s, streams)

    def _before(self, flow: Flow, compute: float) -> float:
        """The images in flight that are served before another one of the flow: its own, and the fair share of
        each other flow in the meantime. So a thousand photographs of one caller do not delay the first one of
        another. See `FairQueue.work_before`."""
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
    """The time of an unpruned image of the default model in a batch."""
    terms = next(iter(load.terms.values()), _UNKNOWN)
    return terms.image_s + terms.compute_s
