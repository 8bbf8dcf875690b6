"""The dispatcher through any order of events: processes come, die and are replaced, images are withdrawn, a
model is loaded and unloaded, time passes. Every image ends once, and its slot is free then; no image is
refused because its model was unloaded, and no worker is asked for what it does not hold."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.dispatch.dispatcher import Dispatcher
from app.dispatch.fleet import Unexpected
from app.dispatch.policy.batches import QueueLimits
from app.messages import to_front_end, to_worker
from app.messages.capacity import Limits
from app.messages.model import ModelInfo
from app.messages.to_dispatcher import (
    Alive,
    Cancel,
    Done,
    FrontEnd,
    Held,
    LoadModel,
    ModelLeft,
    ModelLoaded,
    ModelNotLoaded,
    ModelUnloaded,
    Submit,
    UnloadModel,
)
from app.messages.to_front_end import ModelChanged, Models, Outcomes, Refuse
from app.messages.to_worker import Batch
from tests.app.dispatch.rig import found, hello, measured, record
from tests.app.fakes import LARGER, MODEL
from tests.support.examples import examples

MOST_FRONT_ENDS, MOST_WORKERS, SLOTS_EACH = 3, 3, 6


def held(name: str, limits: Limits) -> Held:
    """A model that a worker holds."""
    if name == MODEL.name:
        return Held(MODEL, measured(limits))
    return Held(LARGER, measured(limits, 0.004))


class Machine(RuleBasedStateMachine):
    """Front ends and workers are played by the test; the dispatcher is real, and is replaced, too."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 50.0
        self.peers = 0
        self.images = 0
        self.front_ends: dict[int, int] = {}  # connection -> index
        self.workers: dict[int, Limits] = {}
        self.holds: dict[int, set[str]] = {}  # what each worker holds
        self.orders: list[tuple[int, to_worker.LoadModel | to_worker.UnloadModel]] = []
        self.left: list[str] = [LARGER.name]  # what processes that start anew are told is served
        self.told: dict[int, set[str]] = {}  # what front ends know, by their index
        self.leaving: set[int] = set()  # front ends with images of a model that is not served any more
        self.changes: set[tuple[int, int]] = set()  # that front ends wait for
        self.free = {index: list(range(SLOTS_EACH)) for index in range(MOST_FRONT_ENDS)}
        self.open: dict[int, dict[int, int]] = {}  # front end's index -> image -> its slot
        self.running: list[tuple[int, Batch]] = []
        self.models: dict[int, ModelInfo] = {}  # that the images are for
        self.ended: set[int] = set()
        self.crashes: dict[int, int] = {}  # slot -> how often a worker died with it in a batch
        self.dispatcher: Dispatcher | None = None

    @initialize(queue_images=st.integers(1, 12))
    def begin(self, queue_images: int) -> None:
        self.limits = QueueLimits(queue_images)
        self.start_dispatcher()

    def start_dispatcher(self) -> None:
        self.dispatcher = Dispatcher(
            self.limits,
            MOST_FRONT_ENDS * SLOTS_EACH,
            patience_s=40.0,
            listed=(LARGER.name,),
            others=self.left,
            remember=self.remember,
        )

    def remember(self, names: Any) -> None:
        self.left = list(names)

    # --- what happens -------------------------------------------------------------------------------
    @precondition(lambda self: len(self.front_ends) < MOST_FRONT_ENDS)
    @rule()
    def a_front_end_comes(self) -> None:
        index = min(set(range(MOST_FRONT_ENDS)) - set(self.front_ends.values()))
        self.connect_front_end(index)
        self.open.setdefault(index, {})
        self.turn()

    @precondition(lambda self: self.front_ends)
    @rule(data=st.data())
    def a_front_end_dies(self, data: st.DataObject) -> None:
        """Its successor has all slots; what it had asked is nobody's."""
        peer = data.draw(st.sampled_from(sorted(self.front_ends)))
        index = self.front_ends.pop(peer)
        self.open[index] = {}
        self.leaving.discard(index)
        self.told.pop(index, None)
        self.changes = {change for change in self.changes if change[0] != peer}
        self.free[index] = list(range(SLOTS_EACH))
        assert self.dispatcher is not None
        self.dispatcher.gone(peer)
        self.turn()

    @precondition(lambda self: len(self.workers) < MOST_WORKERS)
    @rule(streams=st.integers(1, 2), tokens=st.sampled_from([17, 40, 1000]))
    def a_worker_comes(self, streams: int, tokens: int) -> None:
        self.connect_worker(Limits(tokens, streams, streams))
        self.turn()

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def a_worker_dies(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from(sorted(self.workers)))
        self.lose_worker(peer)
        self.turn()

    @rule()
    def the_dispatcher_dies(self) -> None:
        """Front ends and workers connect to the successor; open images are sent again."""
        fronts = list(self.front_ends.values())
        workers = [(limits, self.holds[peer]) for peer, limits in self.workers.items()]
        self.front_ends, self.workers, self.running = {}, {}, []
        self.holds, self.orders, self.changes = {}, [], set()
        self.start_dispatcher()
        for index in fronts:
            self.connect_front_end(index)
        for limits, holds in workers:
            self.connect_worker(limits, holds)
        self.turn()

    @precondition(lambda self: self.front_ends)
    @rule(data=st.data(), load=st.booleans())
    def a_change_is_asked_for(self, data: st.DataObject, load: bool) -> None:
        peer = data.draw(st.sampled_from(sorted(self.front_ends)))
        self.images += 1
        self.changes.add((peer, self.images))
        self.say(peer, (LoadModel if load else UnloadModel)(self.images, LARGER.name))

    @precondition(lambda self: self.orders)
    @rule(data=st.data(), fails=st.sampled_from([False, False, True]))
    def a_worker_does_what_it_was_told(self, data: st.DataObject, fails: bool) -> None:
        peer = data.draw(st.sampled_from(sorted({peer for peer, _ in self.orders})))
        self.do_order(peer, fails=fails)

    @precondition(lambda self: self.front_ends)
    @rule(
        data=st.data(),
        number=st.integers(1, 3),
        deadline_s=st.sampled_from([0.5, 30.0, 1e6]),
        caller=st.sampled_from("ab"),
        floor=st.sampled_from([None, 0.3]),
        model=st.sampled_from([MODEL, LARGER]),
    )
    def images_come(
        self,
        data: st.DataObject,
        number: int,
        deadline_s: float,
        caller: str,
        floor: float | None,
        model: ModelInfo,
    ) -> None:
        peer = data.draw(st.sampled_from(sorted(self.front_ends)))
        index = self.front_ends[peer]
        known = self.told.get(index, {MODEL.name})
        if model.name not in known and index not in self.leaving:  # then it was being decoded
            return
        records = []
        for _ in range(min(number, len(self.free[index]))):
            self.images += 1
            slot = self.free[index].pop()
            self.open[index][self.images] = slot
            asked: dict[str, Any] = {"deadline_s": deadline_s, "caller": caller, "min_keep_ratio": floor}
            self.models[self.images] = model
            asked |= {"model": model.name, "size": model.pixel_bytes}
            records.append(record(self.images, index * SLOTS_EACH + slot, **asked))
        self.say(peer, Submit(records))

    @precondition(lambda self: any(self.open.values()))
    @rule(data=st.data())
    def an_image_is_withdrawn(self, data: st.DataObject) -> None:
        connected = {index: peer for peer, index in self.front_ends.items()}
        choices = [(index, image) for index in connected for image in self.open[index]]
        if choices:
            index, image = data.draw(st.sampled_from(choices))
            self.free[index].append(self.open[index].pop(image))
            self.say(connected[index], Cancel([image]))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fault=st.sampled_from([None, None, "worker-fault", "out-of-memory"]))
    def a_batch_ends(self, data: st.DataObject, fault: str | None) -> None:
        place = data.draw(st.integers(0, len(self.running) - 1))
        self.finish(place, fault)

    @rule(seconds=st.sampled_from([0.01, 1.0, 4.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.turn()

    @precondition(lambda self: self.workers)
    @rule()
    def workers_are_alive(self) -> None:
        for peer in self.workers:
            self.say(peer, Alive())

    # --- how ----------------------------------------------------------------------------------------
    def connect_front_end(self, index: int) -> None:
        self.peers += 1
        self.front_ends[self.peers] = index
        assert self.dispatcher is not None
        self.dispatcher.received(self.peers, FrontEnd(index), self.now)
        records = [
            record(
                image,
                index * SLOTS_EACH + slot,
                again=True,
                model=self.models[image].name,
                size=self.models[image].pixel_bytes,
            )
            for image, slot in self.open.get(index, {}).items()
        ]
        self.dispatcher.received(self.peers, Submit(records), self.now)

    def connect_worker(self, limits: Limits, holds: set[str] | None = None) -> None:
        """One that starts anew holds what it was left word of."""
        self.peers += 1
        self.workers[self.peers] = limits
        mine = self.holds[self.peers] = {MODEL.name, *self.left} if holds is None else holds
        models = tuple(held(name, limits) for name in sorted(mine, reverse=True))  # the default one first
        assert self.dispatcher is not None
        self.dispatcher.received(self.peers, hello(f"worker-{self.peers}", limits, models=models), self.now)

    def lose_worker(self, peer: int) -> None:
        del self.workers[peer], self.holds[peer]
        self.running = [(worker, batch) for worker, batch in self.running if worker != peer]
        self.orders = [order for order in self.orders if order[0] != peer]
        assert self.dispatcher is not None
        self.dispatcher.gone(peer)

    def do_order(self, peer: int, *, fails: bool = False) -> None:
        order = next(order for order in self.orders if order[0] == peer)
        self.orders.remove(order)
        name = order[1].name
        if isinstance(order[1], to_worker.UnloadModel):
            assert name not in {batch.model for worker, batch in self.running if worker == peer}
            self.holds[peer].discard(name)
            self.say(peer, ModelUnloaded(name))
        elif fails:
            try:
                self.say(peer, ModelNotLoaded(name, "refused", "no"))
            except Unexpected:  # it is served, so the worker is of no use
                self.lose_worker(peer)
                self.turn()
        else:
            self.holds[peer].add(name)
            self.say(peer, ModelLoaded(held(name, self.workers[peer])))

    @precondition(lambda self: self.leaving)
    @rule()
    def front_ends_leave_the_model(self) -> None:
        """Those whose last image of it has ended say so."""
        for peer, index in list(self.front_ends.items()):
            mine = {self.models[image].name for image in self.open.get(index, {})}
            if index in self.leaving and LARGER.name not in mine:
                self.leaving.discard(index)
                self.say(peer, ModelLeft(LARGER.name))

    def say(self, peer: int, message: Any) -> None:
        assert self.dispatcher is not None
        self.dispatcher.received(peer, message, self.now)
        self.turn()

    def turn(self) -> None:
        assert self.dispatcher is not None
        due = self.dispatcher.turn(self.now)
        assert 0 <= due <= 0.5
        for parcel in self.dispatcher.outbox.take():
            if parcel.peer in self.workers:
                message = to_worker.decode(parcel.data)
                if not isinstance(message, Batch):
                    assert isinstance(message, to_worker.LoadModel | to_worker.UnloadModel)
                    self.orders.append((parcel.peer, message))
                    continue
                assert message.model in self.holds[parcel.peer]
                assert (parcel.peer, to_worker.UnloadModel(message.model)) not in self.orders
                assert {self.model_in(order.slot) for order in message.images} == {message.model}
                self.running.append((parcel.peer, message))
            elif parcel.peer in self.front_ends:
                told = to_front_end.decode(parcel.data)
                index = self.front_ends[parcel.peer]
                if isinstance(told, Outcomes):
                    for outcome in (*told.answers, *told.refusals):
                        assert not isinstance(outcome, Refuse) or outcome.reason != "model-unloaded"
                        self.image_ended(index, outcome.id)
                elif isinstance(told, Models):
                    names = {info.name for info in told.infos}
                    if LARGER.name in self.told.get(index, set()) - names:
                        self.leaving.add(index)
                    self.leaving -= {index} if LARGER.name in names else set()
                    self.told[index] = names
                elif isinstance(told, ModelChanged):
                    self.changes.remove((parcel.peer, told.id))

    def model_in(self, slot: int) -> str:
        """The model that the image in that slot is for."""
        index, place = divmod(slot, SLOTS_EACH)
        (image,) = (image for image, taken in self.open[index].items() if taken == place)
        return self.models[image].name

    def image_ended(self, index: int, image: int) -> None:
        assert image not in self.ended, "an image ended twice"
        self.ended.add(image)
        self.free[index].append(self.open[index].pop(image, -1))
        if self.free[index][-1] == -1:
            raise AssertionError("an image ended that nobody waits for")

    def finish(self, place: int, fault: str | None = None) -> None:
        peer, batch = self.running.pop(place)
        results: list[Any] = [found(order.ask, 1) for order in batch.images]
        if fault is not None:
            results[0] = fault
        self.say(peer, Done(batch.number, results, 0.01, len(results)))

    # --- what holds ---------------------------------------------------------------------------------
    @invariant()
    def no_slot_is_lost(self) -> None:
        for index, free in self.free.items():
            taken = list(self.open.get(index, {}).values())
            assert sorted([*free, *taken]) == list(range(SLOTS_EACH))

    @invariant()
    def workers_hold_their_limits(self) -> None:
        for peer, limits in self.workers.items():
            threads = [batch.threads for worker, batch in self.running if worker == peer]
            assert len(threads) <= limits.streams
            assert sum(threads) <= limits.threads

    @invariant()
    def what_is_open_is_known(self) -> None:
        if self.dispatcher is None:
            return
        waiting = sum(len(images) for images in self.open.values())
        assert f", {waiting} images," in repr(self.dispatcher)
        assert self.dispatcher.idle == (waiting == 0)

    def teardown(self) -> None:
        """However it went, what is open ends once a worker is there that lives."""
        if self.dispatcher is None:
            return
        self.connect_worker(Limits(1000, 1, 1))
        self.turn()
        for _ in range(300):
            if not any(self.open.values()) and not self.orders and not self.leaving:
                break
            if self.leaving:
                self.front_ends_leave_the_model()
            if self.running:
                self.finish(0)
            elif self.orders:
                self.do_order(self.orders[0][0])
            else:
                self.workers_are_alive()
        assert not any(self.open.values())
        assert self.dispatcher.idle
        assert not self.changes, "a change was not answered"
        assert {frozenset(each) for each in self.holds.values()} == {frozenset({MODEL.name, *self.left})}


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=examples(25), stateful_step_count=40)
