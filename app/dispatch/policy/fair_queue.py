"""Who comes next: priorities share the workers by weight, and the callers of one priority share it alike.

Both levels are start-time fair queueing (Goyal, Vin and Cheng 1996): a flow carries the virtual time at
which it is served next; what is served moves it on by its predicted seconds over its weight, and a flow that
comes anew starts at the virtual time of now. So no flow starves, a caller's backlog delays that caller, and
an idle share goes to the others. What one caller sends in one priority stays in order. Pure data.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, nlargest
from types import MappingProxyType
from typing import TypeVar

import msgspec

from app.dispatch.policy.totals import Totals
from app.priority import Priority

T = TypeVar("T")

# Shares of the workers while all three have work waiting: 16, 4 and 1 of 21.
WEIGHTS: dict[Priority, float] = {"high": 16.0, "normal": 4.0, "batch": 1.0}
_ROUNDS = 3
# Callers whose lead is remembered although they have nothing waiting, for each priority. There are more only
# where so many callers come at once that a share of the workers is next to nothing.
MOST_LEADS = 1024


class Entry(msgspec.Struct, frozen=True):
    """An image in the queue.

    ``seconds`` and ``tokens`` are what it is predicted to cost in a batch at every depth of a brown-out, from
    0 (as asked) to the deepest: they never rise, and are all alike where the image may not be lowered.
    ``tokens`` are the model's, times the share of compute. ``alone_s`` is how long it takes on an idle worker
    with all threads, at every depth. ``deadline`` may be infinite. ``wait_limit_s`` bounds the predicted wait
    of an image without a deadline of its own. ``batch_slack_s`` is what it left to those behind it in its
    batch when it was accepted.
    """

    key: Hashable
    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    alone_s: tuple[float, ...]
    arrived: float
    deadline: float
    wait_limit_s: float = float("inf")
    caller: str = ""
    priority: Priority = "normal"
    least_depth: int = 0
    batch_slack_s: float = 0.0

    def leaving(self, batch_slack_s: float) -> "Entry":
        """The entry, which leaves so much to those behind it."""
        return msgspec.structs.replace(self, batch_slack_s=batch_slack_s) if batch_slack_s else self

    def at_least(self, depth: int) -> "Entry":
        """The entry, lowered to that depth whatever the brown-out's."""
        if depth == self.least_depth:
            return self

        def lowered(costs: tuple[T, ...]) -> tuple[T, ...]:
            return (costs[depth],) * depth + costs[depth:]

        return msgspec.structs.replace(
            self,
            tokens=lowered(self.tokens),
            seconds=lowered(self.seconds),
            alone_s=lowered(self.alone_s),
            least_depth=depth,
        )


@dataclass(slots=True, eq=False)
class _Flow:
    """What one caller has waiting in one priority. ``start`` is the virtual time of its next service."""

    caller: str
    work: Totals
    start: float = 0.0
    entries: OrderedDict[Hashable, Entry] = field(default_factory=OrderedDict)


@dataclass(slots=True, eq=False)
class _Class:
    """One priority: the flows that have entries, in a heap by when they are served next.

    ``leads`` keeps the virtual start of callers with nothing waiting that were served ahead of now: whoever
    comes back before then goes on from there. A lead that now has reached means nothing and is forgotten.
    When nothing waits, nobody was held up by a lead, and all of them are.
    """

    weight: float
    work: Totals
    start: float = 0.0
    now: float = 0.0
    entries: int = 0
    flows: dict[str, _Flow] = field(default_factory=dict)
    heap: list[tuple[float, int, _Flow]] = field(default_factory=list)
    leads: dict[str, float] = field(default_factory=dict)

    def first(self) -> _Flow | None:
        """The flow whose turn it is."""
        while self.heap:
            flow = self.heap[0][2]
            if flow.entries:
                return flow
            heappop(self.heap)
        return None

    def start_of(self, caller: str) -> float:
        """Where a flow of that caller begins, which has none now."""
        return max(self.now, self.leads.pop(caller, self.now))

    def line_up(self, flow: _Flow, turn: int) -> None:
        """Put it into the heap. Withdrawn flows stay there until their turn, but not many of them."""
        heappush(self.heap, (flow.start, turn, flow))
        if len(self.heap) > 2 * len(self.flows) + 64:
            self.heap = [item for item in self.heap if item[2].entries]
            heapify(self.heap)

    def forget(self, flow: _Flow) -> None:
        """The flow has run empty."""
        del self.flows[flow.caller]
        if not self.flows:
            self.heap.clear()
            self.leads.clear()
            return
        if flow.start > self.now:
            self.leads[flow.caller] = flow.start
        if len(self.leads) > MOST_LEADS:
            ahead = [(start, caller) for caller, start in self.leads.items() if start > self.now]
            self.leads = {caller: start for start, caller in nlargest(MOST_LEADS // 2, ahead)}


class FairQueue:
    """Entries in fair order, with running totals of their work."""

    def __init__(self, depths: int) -> None:
        self._depths = depths
        self._classes = {name: _Class(weight, Totals(depths)) for name, weight in WEIGHTS.items()}
        self._entries: dict[Hashable, Entry] = {}
        self._by_caller: dict[str, int] = {}
        self._now = 0.0
        self._turns = 0
        self.work = Totals(depths)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Entry]:
        """The entries, in no order that matters."""
        return iter(self._entries.values())

    def get(self, key: Hashable) -> Entry | None:
        """The waiting entry with that key."""
        return self._entries.get(key)

    def held_by(self, caller: str) -> int:
        """Entries of that caller, in all priorities."""
        return self._by_caller.get(caller, 0)

    @property
    def callers(self) -> int:
        """Callers who have entries waiting."""
        return len(self._by_caller)

    @property
    def remembered(self) -> int:
        """Everything that is kept of callers: flows, places in the heaps and leads."""
        return sum(
            len(class_.flows) + len(class_.heap) + len(class_.leads) for class_ in self._classes.values()
        )

    def add(self, entry: Entry) -> None:
        """Queue an entry behind its caller's others. Raises ValueError for a key that is waiting already."""
        if entry.key in self._entries:
            raise ValueError(f"{entry.key!r} is already waiting")
        class_ = self._classes[entry.priority]
        if not class_.entries:
            class_.start = max(class_.start, self._now)
        flow = class_.flows.get(entry.caller)
        if flow is None:
            start = class_.start_of(entry.caller)
            flow = class_.flows[entry.caller] = _Flow(entry.caller, Totals(self._depths), start)
            flow.entries[entry.key] = entry
            self._line_up(class_, flow)
        flow.entries[entry.key] = entry
        self._entries[entry.key] = entry
        self._by_caller[entry.caller] = self.held_by(entry.caller) + 1
        class_.entries += 1
        for totals in (self.work, class_.work, flow.work):
            totals.add(entry.seconds)

    def remove(self, key: Hashable) -> Entry | None:
        """Take an entry out, wherever it stands, without serving it; None if it is not waiting."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        class_ = self._classes[entry.priority]
        flow = class_.flows[entry.caller]
        del flow.entries[key]
        class_.entries -= 1
        self._by_caller[entry.caller] -= 1
        if not self._by_caller[entry.caller]:
            del self._by_caller[entry.caller]
        for totals in (self.work, class_.work, flow.work):
            totals.remove(entry.seconds)
        if not flow.entries:
            class_.forget(flow)
        return entry

    def first(self) -> Entry | None:
        """The entry whose turn it is."""
        if not self._entries:
            return None
        class_ = self._next_class()
        flow = None if class_ is None else class_.first()
        return None if flow is None else next(iter(flow.entries.values()))

    def serve(self, entry: Entry, seconds: float) -> None:
        """Take out the entry that `first` gave, at that cost to its caller's and its priority's share.
        Raises ValueError for any other."""
        if entry is not self.first():
            raise ValueError(f"it is not the turn of {entry.key!r}")
        class_ = self._classes[entry.priority]
        flow = class_.flows[entry.caller]
        heappop(class_.heap)
        self._now, class_.now = class_.start, flow.start
        class_.start += seconds / class_.weight
        flow.start += seconds
        self.remove(entry.key)
        if flow.entries:
            self._line_up(class_, flow)

    def work_before(
        self,
        caller: str | None,
        priority: Priority,
        seconds: float,
        depth: int,
        coming: Mapping[Priority, float] = MappingProxyType({}),
    ) -> float:
        """Seconds of work that would be served before a further entry of so many seconds has been: the
        caller's own, as much of every other caller's in the priority, and of the other priorities what their
        shares give them meanwhile, of what they have waiting and of what is ``coming``: so much work of a
        priority for every second of work that is served."""
        if not self._entries:
            return 0.0
        class_ = self._classes[priority]
        flow = None if caller is None else class_.flows.get(caller)
        own = 0.0 if flow is None else flow.work[depth]
        within = own + sum(
            min(other.work[depth], own + seconds) for other in class_.flows.values() if other is not flow
        )
        served = (within + seconds) / class_.weight
        before = within
        for _ in range(_ROUNDS if coming else 1):  # what comes meanwhile makes the meanwhile longer
            before = within + sum(
                min(other.work[depth] + coming.get(name, 0.0) * before, served * other.weight)
                for name, other in self._classes.items()
                if other is not class_
            )
        return before

    def heaviest(self, number: int) -> list[tuple[str, Priority]]:
        """The callers with the most work waiting in a priority, at most so many of each priority."""
        found: list[tuple[str, Priority]] = []
        for name, class_ in self._classes.items():
            heaviest = nlargest(number, class_.flows.values(), key=lambda flow: flow.work[0])
            found += [(flow.caller, name) for flow in heaviest]
        return found

    def _next_class(self) -> _Class | None:
        found: _Class | None = None
        for class_ in self._classes.values():
            if class_.entries and (found is None or class_.start < found.start):
                found = class_
        return found

    def _line_up(self, class_: _Class, flow: _Flow) -> None:
        self._turns += 1
        class_.line_up(flow, self._turns)
