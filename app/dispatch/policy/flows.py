"""What waits in the fair queue: the callers of a priority, and each caller's images. Pure data."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, nlargest

from app.dispatch.policy.entry import Entry
from app.dispatch.policy.totals import Totals

# Callers whose lead is remembered although they have nothing waiting, for each priority. There are more only
# where so many callers come at once that a share of the workers is next to nothing.
MOST_LEADS = 1024

Line = list[tuple[float, int, "Flow"]]  # a heap of flows, by their starts when they were lined up


@dataclass(slots=True, eq=False)
class Flow:
    """What one caller has waiting in one priority, in order for each model. ``start`` is the virtual time of
    its next service; it never falls. ``lined_up``: the models in whose lines it stands."""

    caller: str
    work: Totals
    start: float = 0.0
    entries: dict[str, OrderedDict[Hashable, Entry]] = field(default_factory=dict)
    lined_up: set[str] = field(default_factory=set)

    def add(self, entry: Entry) -> None:
        """Behind the others of its model."""
        self.entries.setdefault(entry.model, OrderedDict())[entry.key] = entry

    def remove(self, entry: Entry) -> None:
        """Wherever it stands."""
        of_model = self.entries[entry.model]
        del of_model[entry.key]
        if not of_model:
            del self.entries[entry.model]

    def first(self, model: str) -> Entry:
        """The next of that model."""
        return next(iter(self.entries[model].values()))


@dataclass(slots=True, eq=False)
class PriorityClass:
    """One priority: the flows that have entries, and for each model a heap of those that have some of it, by
    when they are served next.

    A flow that another model's batch has served stands in a heap where it was before; it is put where it is
    now when it comes first there. ``leads`` keeps the virtual start of callers with nothing waiting that were
    served ahead of now: whoever comes back before then goes on from there. A lead that now has reached means
    nothing and is forgotten. When nothing waits, nobody was held up by a lead, and all of them are.
    """

    weight: float
    work: Totals
    start: float = 0.0
    now: float = 0.0
    entries: int = 0
    flows: dict[str, Flow] = field(default_factory=dict)
    lines: dict[str, Line] = field(default_factory=dict)
    leads: dict[str, float] = field(default_factory=dict)

    def first(self, model: str | None) -> Entry | None:
        """The entry whose turn it is: of that model, or of any. Of one caller's the oldest comes first."""
        if model is None and len(self.lines) == 1:
            (model,) = self.lines
        if model is not None:
            flow = self._first_flow(model)
            return None if flow is None else flow.first(model)
        found, best = None, (0.0, 0.0, 0)
        for each in tuple(self.lines):
            if (flow := self._first_flow(each)) is not None:
                entry, turn = flow.first(each), self.lines[each][0][1]
                if found is None or (flow.start, entry.arrived, turn) < best:
                    found, best = entry, (flow.start, entry.arrived, turn)
        return found

    def flow_for(self, caller: str, depths: int) -> Flow:
        """That caller's, which begins here where there is none."""
        flow = self.flows.get(caller)
        if flow is None:
            start = max(self.now, self.leads.pop(caller, self.now))
            flow = self.flows[caller] = Flow(caller, Totals(depths), start)
        return flow

    def line_up(self, flow: Flow, model: str, turn: int) -> None:
        """Put it into the model's line, unless it stands there. Withdrawn flows stay there until their turn,
        but not many of them."""
        if model in flow.lined_up:
            return
        flow.lined_up.add(model)
        line = self.lines.setdefault(model, [])
        heappush(line, (flow.start, turn, flow))
        if len(line) > 2 * len(self.flows) + 64:
            for _, _, gone in line:
                if model not in gone.entries:
                    gone.lined_up.discard(model)
            line[:] = [item for item in line if model in item[2].entries]
            heapify(line)

    def served(self, flow: Flow, entry: Entry, seconds: float) -> None:
        """The entry that was `first` of its model is computed: it moves on its flow and the priority. Now is
        the start of whoever is to be served next, which others than this flow may be."""
        if len(self.lines) == 1:
            self.now = flow.start
        elif (first := self.first(None)) is not None:
            self.now = max(self.now, self.flows[first.caller].start)
        heappop(self.lines[entry.model])
        flow.lined_up.discard(entry.model)
        self.start += seconds / self.weight
        flow.start += seconds

    def forget(self, flow: Flow) -> None:
        """The flow has run empty."""
        del self.flows[flow.caller]
        if not self.flows:
            self.lines.clear()
            self.leads.clear()
            return
        if flow.start > self.now:
            self.leads[flow.caller] = flow.start
        if len(self.leads) > MOST_LEADS:
            ahead = [(start, caller) for caller, start in self.leads.items() if start > self.now]
            self.leads = {caller: start for start, caller in nlargest(MOST_LEADS // 2, ahead)}

    def _first_flow(self, model: str) -> Flow | None:
        line = self.lines.get(model)
        while line:
            start, turn, flow = line[0]
            if model not in flow.entries:
                heappop(line)
                flow.lined_up.discard(model)
            elif start < flow.start:
                heappop(line)
                heappush(line, (flow.start, turn, flow))
            else:
                return flow
        self.lines.pop(model, None)
        return None
