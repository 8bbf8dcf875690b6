"""The dispatcher through any order of events: processes come, die and are replaced, images are withdrawn,
time passes. Every image ends once, and its slot is free then."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.dispatch.dispatcher import Dispatcher
from app.dispatch.policy.batches import QueueLimits
from app.messages import to_front_end, to_worker
from app.messages.capacity import Limits
from app.messages.model import ModelInfo
from app.messages.to_dispatcher import Alive, Cancel, Done, FrontEnd, Held, Submit
from app.messages.to_front_end import Outcomes
from app.messages.to_worker import Batch
from tests.app.dispatch.rig import found, hello, measured, record
from tests.app.fakes import LARGER, MODEL

MOST_FRONT_ENDS, MOST_WORKERS, SLOTS_EACH = 3, 3, 6


def both(limits: Limits) -> tuple[Held, ...]:
    """Two models that a worker holds."""
    return Held(MODEL, measured(limits)), Held(LARGER, measured(limits, 0.004))


class Machine(RuleBasedStateMachine):
    """Front ends and workers are played by the test; the dispatcher is real, and is replaced, too."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 50.0
        self.peers = 0
        self.images = 0
        self.front_ends: dict[int, int] = {}  # connection -> index
        self.workers: dict[int, Limits] = {}
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
        self.dispatcher = Dispatcher(self.limits, MOST_FRONT_ENDS * SLOTS_EACH, patience_s=40.0)

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
        del self.workers[peer]
        self.running = [(worker, batch) for worker, batch in self.running if worker != peer]
        assert self.dispatcher is not None
        self.dispatcher.gone(peer)
        self.turn()

    @rule()
    def the_dispatcher_dies(self) -> None:
        """Front ends and workers connect to the successor; open images are sent again."""
        fronts, workers = list(self.front_ends.values()), list(self.workers.values())
        self.front_ends, self.workers, self.running = {}, {}, []
        self.start_dispatcher()
        for index in fronts:
            self.connect_front_end(index)
        for limits in workers:
            self.connect_worker(limits)
        self.turn()

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

    def connect_worker(self, limits: Limits) -> None:
        self.peers += 1
        self.workers[self.peers] = limits
        assert self.dispatcher is not None
        self.dispatcher.received(
            self.peers, hello(f"worker-{self.peers}", limits, models=both(limits)), self.now
        )

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
                assert isinstance(message, Batch)
                assert {self.model_in(order.slot) for order in message.images} == {message.model}
                self.running.append((parcel.peer, message))
            elif parcel.peer in self.front_ends:
                told = to_front_end.decode(parcel.data)
                if isinstance(told, Outcomes):
                    for outcome in (*told.answers, *told.refusals):
                        self.image_ended(self.front_ends[parcel.peer], outcome.id)

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
            if not any(self.open.values()):
                break
            if self.running:
                self.finish(0)
            else:
                self.workers_are_alive()
        assert not any(self.open.values())
        assert self.dispatcher.idle


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=50, stateful_step_count=40)
