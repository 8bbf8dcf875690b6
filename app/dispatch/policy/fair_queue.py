"""Fair queueing: priorities share the workers by weight, and callers of one priority share it equally.

Both levels are start-time fair queueing (Goyal, Vin and Cheng 1996). A flow has the virtual time at which it
is served next. Serving it adds its predicted seconds divided by its weight, and a new flow starts at the
current virtual time. So no flow starves, a caller's backlog only delays that caller, and unused shares go to
the others. The images of one caller for one model and priority stay in order.

A batch holds images of one model: it begins with the entry whose turn it is, and continues with entries of
the same model in the order of their turns. Whoever is served before their turn in this way is served later
afterwards. Pure data.
"""

from collections.abc import Hashable, Iterator, Mapping
from heapq import nlargest
from types import MappingProxyType

from app.dispatch.policy.entry import Entry as Entry
from app.dispatch.policy.flows import MOST_LEADS as MOST_LEADS
from app.dispatch.policy.flows import PriorityClass
from app.dispatch.policy.totals import Totals
from app.priority import Priority

# Shares of the workers if all three priorities have work waiting: 16/21, 4/21 and 1/21.
WEIGHTS: dict[Priority, float] = {"high": 16.0, "normal": 4.0, "batch": 1.0}
_ROUNDS = 3


class FairQueue:
    """Entries in fair order, with running totals of their work."""

    def __init__(self, depths: int) -> None:
        self._depths = depths
        self._classes = {name: PriorityClass(weight, Totals(depths)) for name, weight in WEIGHTS.items()}
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
        """The entries, in no particular order."""
        return iter(self._entries.values())

    def get(self, key: Hashable) -> Entry | None:
        """The waiting entry with that key."""
        return self._entries.get(key)

    def held_by(self, caller: str) -> int:
        """The number of entries of that caller, in all priorities."""
        return self._by_caller.get(caller, 0)

    @property
    def callers(self) -> int:
        """The callers that have entries waiting."""
        return len(self._by_caller)

    @property
    def remembered(self) -> int:
        """Everything that is stored for callers: flows, places in the lines and leads."""
        return sum(
            len(class_.flows) + sum(map(len, class_.lines.values())) + len(class_.leads)
            for class_ in self._classes.values()
        )

    def add(self, entry: Entry) -> None:
        """Queue an entry behind its caller's others. Raises ValueError if its key is already waiting."""
        if entry.key in self._entries:
            raise ValueError(f"{entry.key!r} is already waiting")
        class_ = self._classes[entry.priority]
        if not class_.entries:
            class_.start = max(class_.start, self._now)
        flow = class_.flow_for(entry.caller, self._depths)
        flow.add(entry)
        if entry.model not in flow.lined_up:
            self._turns += 1
            class_.line_up(flow, entry.model, self._turns)
        self._entries[entry.key] = entry
        self._by_caller[entry.caller] = self.held_by(entry.caller) + 1
        class_.entries += 1
        for totals in (self.work, class_.work, flow.work):
            totals.add(entry.seconds)

    def remove(self, key: Hashable) -> Entry | None:
        """Remove an entry without serving it. None if it is not waiting."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        class_ = self._classes[entry.priority]
        flow = class_.flows[entry.caller]
        flow.remove(entry)
        class_.entries -= 1
        self._by_caller[entry.caller] -= 1
        if not self._by_caller[entry.caller]:
            del self._by_caller[entry.caller]
        for totals in (self.work, class_.work, flow.work):
            totals.remove(entry.seconds)
        if not flow.entries:
            class_.forget(flow)
        return entry

    def first(self, model: str | None = None) -> Entry | None:
        """The entry whose turn it is, for that model or for any."""
        if not self._entries:
            return None
        found: Entry | None = None
        best = 0.0
        for class_ in self._classes.values():
            if class_.entries and (found is None or class_.start < best):
                entry = class_.first(model)
                if entry is not None:
                    found, best = entry, class_.start
        return found

    def serve(self, entry: Entry, seconds: float) -> None:
        """Remove the entry that `first` returned, and charge its cost to its caller and its priority. Raises
        ValueError for any other entry."""
        if entry is not self.first(entry.model):
            raise ValueError(f"it is not the turn of {entry.key!r}")
        class_ = self._classes[entry.priority]
        flow = class_.flows[entry.caller]
        now = class_.start
        for each in self._classes.values():
            if each.entries and each.start < now:  # this class has no image of the model
                now = each.start
        if now > self._now:
            self._now = now
        class_.served(flow, entry, seconds)
        self.remove(entry.key)
        if entry.model in flow.entries:
            self._turns += 1
            class_.line_up(flow, entry.model, self._turns)

    def work_before(
        self,
        caller: str | None,
        priority: Priority,
        seconds: float,
        depth: int,
        coming: Mapping[Priority, float] = MappingProxyType({}),
    ) -> float:
        """The seconds of work that would be served before another entry with this many seconds: the caller's
        own work; as much of every other caller's in the priority; and the share that the other priorities get
        in the meantime, of what they have waiting and of what is ``coming`` (the work of a priority that
        arrives per second of work that is served)."""
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
        for _ in range(_ROUNDS if coming else 1):  # work that arrives during the wait makes the wait longer
            before = within + sum(
                min(other.work[depth] + coming.get(name, 0.0) * before, served * other.weight)
                for name, other in self._classes.items()
                if other is not class_
            )
        return before

    def heaviest(self, number: int) -> list[tuple[str, Priority]]:
        """The callers with the most work waiting, at most this many of each priority."""
        found: list[tuple[str, Priority]] = []
        for name, class_ in self._classes.items():
            heaviest = nlargest(number, class_.flows.values(), key=lambda flow: flow.work[0])
            found += [(flow.caller, name) for flow in heaviest]
        return found
