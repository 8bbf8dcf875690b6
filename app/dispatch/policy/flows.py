"""The contents of the fair queue: the callers of a priority, and the images of each caller. Pure data."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, nlargest

from app.dispatch.policy.entry import Entry
from app.dispatch.policy.totals import Totals

# Maximum number of callers per priority whose lead is remembered while nothing of theirs waits. More are only
# needed if so many callers are active that a share of the workers is almost nothing.
MOST_LEADS = 1024

Line = list[tuple[float, int, "Flow"]]  # heap of flows, by their start times when they were added


@dataclass(slots=True, eq=False)
class Flow:
    """The images of one caller that wait in one priority, in order for each model. ``start`` is the virtual
    time of its next service; it never falls. ``lined_up``: the models in whose heaps it is."""

    caller: str
    work: Totals
    start: float = 0.0
    entries: dict[str, OrderedDict[Hashable, Entry]] = field(default_factory=dict)
    lined_up: set[str] = field(default_factory=set)

    def add(self, entry: Entry) -> None:
        """Add it behind the others of its model."""
        self.entries.setdefault(entry.model, OrderedDict())[entry.key] = entry

    def remove(self, entry: Entry) -> None:
        """Remove it, wherever it is."""
        of_model = self.entries[entry.model]
        del of_model[entry.key]
        if not of_model:
            del self.entries[entry.model]

    def first(self, model: str) -> Entry:
        """The next entry of that model."""
        return next(iter(self.entries[model].values()))


@dataclass(slots=True, eq=False)
class PriorityClass:
    """One priority: the flows that have entries, and for each model a heap of the flows that have entries for
    it, ordered by the time of their next service.

    A flow that was served in another model's batch keeps its old place in a heap, and is moved to its new
    place when it becomes the first there. ``leads`` stores the virtual start of callers that have nothing
    waiting and were served ahead of the current time: if they come back before then, they continue from
    there. A lead that the current time has reached is deleted. When nothing waits, all leads are deleted,
    because nobody was delayed by them.
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
        """The entry whose turn it is, for that model or for any. Of one caller, the oldest entry comes
        first."""
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
        """The flow of that caller, which is created if there is none."""
        flow = self.flows.get(caller)
        if flow is None:
            start = max(self.now, self.leads.pop(caller, self.now))
            flow = self.flows[caller] = Flow(caller, Totals(depths), start)
        return flow

    def line_up(self, flow: Flow, model: str, turn: int) -> None:
        """Add the flow to the model's heap, unless it is there. Empty flows stay there until their turn, up
        to a limit."""
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
        """Charge the entry that was `first` of its model to its flow and to the priority. The current virtual
        time becomes the start of the flow that is served next, which may be another one."""
        if len(self.lines) == 1:
            self.now = flow.start
        elif (first := self.first(None)) is not None:
            self.now = max(self.now, self.flows[first.caller].start)
        heappop(self.lines[entry.model])
        flow.lined_up.discard(entry.model)
        self.start += seconds / self.weight
        flow.start += seconds

    def forget(self, flow: Flow) -> None:
        """Remove a flow that is empty."""
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
