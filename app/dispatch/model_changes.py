"""Loading and unloading models while serving. Pure: messages in, messages out.

One change is made at a time. A model is loaded by one worker after the other. Each of them first checks
whether it has enough memory, and front ends are told once all workers have the model. A model is unloaded in
the opposite order: front ends are told first, each reports when its last request for the model has ended, and
the workers drop it once no image of it waits or is computed. So no accepted image is lost.
"""

import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from app.dispatch.fleet import Fleet, Member, TakenIn, Unexpected
from app.dispatch.outbox import Outbox
from app.messages import to_worker
from app.messages.model import ModelInfo
from app.messages.repository import ChangeFault, ModelEntry, ModelState
from app.messages.to_dispatcher import LoadModel, ModelLoaded, ModelNotLoaded, ModelUnloaded, UnloadModel
from app.messages.to_front_end import ModelChanged, Models, Repository

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Change:
    """A change in progress. ``askers``: the front ends that requested it, and their numbers for it.
    ``front_ends``: those that may still send images for a model that is unloaded. ``workers``: those that
    were told and have not answered yet. ``dropped``: no image of a model that is unloaded waits or is
    computed any more. ``told``: since when a worker loads, if that is known."""

    name: str
    loads: bool
    askers: list[tuple[int, int]]
    front_ends: set[int] = field(default_factory=set)
    workers: set[int] = field(default_factory=set)
    dropped: bool = False
    told: float | None = None


class ModelChanges:
    """``listed``: the names of the models that may be loaded; None if none may be. ``remember`` is called
    with the names of the models that are served in addition to the default one, for processes that start
    later. ``load_limit_s``: the maximum time for a worker to load a model."""

    def __init__(
        self,
        fleet: Fleet,
        outbox: Outbox,
        front_ends: Mapping[int, int],
        listed: Collection[str] | None,
        remember: Callable[[Collection[str]], None],
        load_limit_s: float = math.inf,
    ) -> None:
        self._fleet, self._outbox, self._front_ends = fleet, outbox, front_ends
        self._listed, self._remember, self._load_limit_s = listed, remember, load_limit_s
        self._change: _Change | None = None
        self._reasons: dict[str, str] = {}  # why models could not be loaded
        # Workers that were told to cancel loading a model, and have not confirmed it yet.
        self._giving_up: set[tuple[int, str]] = set()

    def __repr__(self) -> str:
        change = self._change
        if change is None:
            return f"<ModelChanges {len(self._fleet.models)} models>"
        return f"<ModelChanges {'loads' if change.loads else 'unloads'} {change.name}>"

    @property
    def are_allowed(self) -> bool:
        """Whether models may be loaded and unloaded."""
        return self._listed is not None

    @property
    def served(self) -> list[ModelInfo]:
        """The models that front ends are told, the default one first."""
        return [info for name, info in self._fleet.models.items() if not self._unloads(name)]

    # --- front ends ---------------------------------------------------------------------------------
    def front_end_came(self, peer: int) -> None:
        """Tell a new front end which models are served."""
        if self._fleet.models:
            self._outbox.tell_front_end(peer, Models(self.served))
        if self._listed is not None:
            self._outbox.tell_front_end(peer, self._entries(self._listed))

    def front_end_gone(self, peer: int) -> None:
        """Forget a front end. The changes that it requested are still made."""
        if (change := self._change) is not None:
            change.front_ends.discard(peer)
            change.askers = [asker for asker in change.askers if asker[0] != peer]

    def asked(self, peer: int, message: LoadModel | UnloadModel) -> None:
        """Begin the requested change, or answer why not. Raises Unexpected."""
        loads, name, asker = isinstance(message, LoadModel), message.name, (peer, message.id)
        if self._listed is None or (name not in self._listed and name not in self._fleet.models):
            raise Unexpected(f"a front end asked for the model {name!r}, which is not one of --loadable")
        change = self._change
        if change is not None and (change.name, change.loads) == (name, loads):
            change.askers.append(asker)
        elif change is not None:
            doing = "loaded" if change.loads else "unloaded"
            self._answer(
                asker,
                "busy",
                f"the model {change.name!r} is being {doing}; only one change can be made at a "
                "time, so retry later",
            )
        elif loads == (name in self._fleet.models):  # already in the requested state
            self._answer(asker)
        elif not self._fleet.members:
            self._answer(asker, "no-worker", "no worker is ready; see /readyz")
        elif not loads and name == next(iter(self._fleet.models)):
            self._answer(asker, "default", f"{name!r} is the default model, which is always served")
        else:
            self._begin(_Change(name, loads, [asker]))

    def left(self, peer: int, name: str) -> None:
        """The front end sends no more images of that model."""
        if self._unloads(name):
            assert self._change is not None
            self._change.front_ends.discard(peer)

    # --- workers ------------------------------------------------------------------------------------
    def worker_came(self, peer: int, found: TakenIn) -> None:
        """Tell a worker which models to load and which to drop."""
        for name in found.beyond:
            self._outbox.tell_worker(peer, to_worker.UnloadModel(name))
        if found.lacks:
            self._outbox.tell_worker(peer, to_worker.LoadModel(found.lacks[0]))
        if found.is_new:
            self.tell_models()
        self._go_on()

    def worker_gone(self, peer: int) -> None:
        """Continue without a worker that has gone."""
        self._giving_up = {each for each in self._giving_up if each[0] != peer}
        change = self._change
        if change is None:
            return
        if change.loads and peer in change.workers:
            self._fail(
                "worker-lost",
                "the worker died while loading the model, possibly because memory ran out; see the log",
            )
            return
        change.workers.discard(peer)
        self._go_on()

    def worker_said(
        self, peer: int, member: Member, message: ModelLoaded | ModelUnloaded | ModelNotLoaded
    ) -> None:
        """Handle a worker's answer. Raises Unexpected if it is set aside and cannot load the served
        models."""
        change = self._change
        match message:
            case ModelLoaded(held):
                name = held.info.name
                if (peer, name) in self._giving_up:  # loading had just finished; the worker drops the model
                    pass
                elif change is not None and change.loads and change.name == name:
                    member.held[name] = held
                    change.workers.discard(peer)
                    self._go_on()
                elif name not in self._fleet.models:  # no change is in progress for this model
                    self._outbox.tell_worker(peer, to_worker.UnloadModel(name))
            case ModelUnloaded(name):
                self._giving_up.discard((peer, name))
                if change is not None and not change.loads and change.name == name:
                    change.workers.discard(peer)
                    self._go_on()
            case ModelNotLoaded(name, fault, words):
                if peer in self._fleet.aside:
                    raise Unexpected(f"{member.hello.name} cannot load {name}, which is served: {words}")
                if change is not None and change.loads and change.name == name and peer in change.workers:
                    self._fail(fault, words)

    # --- how ----------------------------------------------------------------------------------------
    def tell_models(self) -> None:
        """Tell all front ends which models are served."""
        for peer in self._front_ends:
            self.front_end_came(peer)

    def drop_if_unused(self, is_asked: Callable[[str], bool]) -> None:
        """Tell the workers to drop a model that is unloaded, once no image of it waits or is computed."""
        change = self._change
        if change is None or change.loads or change.dropped or change.front_ends:
            return
        name = change.name
        if is_asked(name) or self._fleet.computes(name):
            return
        change.dropped = True
        assert self._fleet.others is not None
        self._fleet.others.remove(name)
        self._remember(self._fleet.others)
        self._fleet.remove_model(name)
        change.workers = set(self._drop_at_workers(name))
        self._go_on()

    def give_up_slow(self, now: float) -> None:
        """End a load that takes too long: the worker may hang for ever, on a disk or a network."""
        change = self._change
        if change is None or not change.loads or not change.workers:
            return
        if change.told is None:
            change.told = now
        elif now >= change.told + self._load_limit_s:
            for peer in change.workers:
                self._giving_up.add((peer, change.name))
                self._outbox.tell_worker(peer, to_worker.UnloadModel(change.name))
            self._fail(
                "too-slow",
                f"it took longer than {self._load_limit_s:g} s (--load-limit-s); the other models are still "
                "served",
            )

    def _begin(self, change: _Change) -> None:
        self._change = change
        log.info("%s model %s", "loading" if change.loads else "unloading", change.name)
        self._reasons.pop(change.name, None)
        if not change.loads:
            change.front_ends = set(self._front_ends)
        self.tell_models()
        self._go_on()

    def _go_on(self) -> None:
        """Take the next step, if it is possible now."""
        change = self._change
        if change is None or change.workers or not (change.loads or change.dropped):
            return
        if not change.loads:
            self._end()
            return
        if not self._fleet.members:
            self._fail("no-worker", "no worker is ready; see /readyz")
            return
        lacking = (peer for peer, each in self._fleet.members.items() if change.name not in each.held)
        if (peer := next(lacking, None)) is not None:
            change.workers.add(peer)
            change.told = None
            self._outbox.tell_worker(peer, to_worker.LoadModel(change.name))
        elif self._fleet.add_model(change.name):
            assert self._fleet.others is not None
            self._fleet.others.append(change.name)
            self._remember(self._fleet.others)
            self._end()
        else:
            self._fail("differs", "two workers loaded different models; its file may have changed in between")

    def _end(self, fault: ChangeFault | None = None, words: str = "") -> None:
        change, self._change = self._change, None
        assert change is not None
        done = "loaded" if change.loads else "unloaded"
        if fault is None:
            log.info("model %s %s", change.name, done)
        else:
            log.error("model %s was not %s: %s", change.name, done, words)
        self.tell_models()  # before the answer, so that the model is available to whoever gets the answer
        for asker in change.askers:
            self._answer(asker, fault, words)

    def _fail(self, fault: ChangeFault, words: str) -> None:
        """End a load that failed: workers that have the model drop it."""
        assert self._change is not None
        self._drop_at_workers(self._change.name)
        self._reasons[self._change.name] = words
        self._end(fault, words)

    def _drop_at_workers(self, name: str) -> list[int]:
        told = []
        for peer, member in (*self._fleet.members.items(), *self._fleet.aside.items()):
            if member.held.pop(name, None) is not None:
                self._outbox.tell_worker(peer, to_worker.UnloadModel(name))
                told.append(peer)
        return told

    def _answer(self, asker: tuple[int, int], fault: ChangeFault | None = None, words: str = "") -> None:
        self._outbox.tell_front_end(asker[0], ModelChanged(asker[1], fault, words))

    def _unloads(self, name: str) -> bool:
        return self._change is not None and not self._change.loads and self._change.name == name

    def _entries(self, listed: Collection[str]) -> Repository:
        names = dict.fromkeys((*self._fleet.models, *listed))
        return Repository(
            [ModelEntry(name, self._state(name), self._reasons.get(name, "")) for name in names]
        )

    def _state(self, name: str) -> ModelState:
        change = self._change
        if change is not None and change.name == name:
            return "loading" if change.loads else "unloading"
        return "ready" if name in self._fleet.models else "unloaded"
