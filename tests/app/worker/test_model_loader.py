"""A worker that loads and unloads models while it computes others."""

import threading

import pytest

from app.messages import to_worker
from app.messages.capacity import Limits
from app.messages.to_dispatcher import LoadModel, ModelLoaded, ModelNotLoaded, ModelUnloaded
from app.worker.backend import Backend, Loaded
from app.worker.held_models import HeldModels
from app.worker.model_loader import ModelLoader, NoRoom
from app.worker.parts import BackendBroken
from app.worker.streams import OnAll, Streams
from app.worker.worker import WorkerLoop
from tests.app.dispatch.rig import (
    PATIENCE_S,
    FakeBackend,
    FrontEndPeer,
    House,
    in_a_thread,
    running_dispatcher,
    wait_for,
)
from tests.app.fakes import LARGER, MODEL
from tests.app.worker.cuda_errors import cuda_error


class Loading:
    """A loader, the models that it knows, and what it has told."""

    def __init__(self, **backends: Backend | Exception) -> None:
        self.told: list[object] = []
        self.failures: list[BaseException] = []
        self.models = HeldModels(lambda _: lambda slot: None)  # type: ignore[arg-type, return-value]
        self.streams: Streams[None] = Streams(2, lambda _: None)

        def backend_of(name: str) -> Backend:
            found = backends[name]
            if isinstance(found, Exception):
                raise found
            return found

        self.loader = ModelLoader(
            self.models, backend_of, self.streams.in_turn, self.told.append, self.failures.append
        )
        self.loader.start()

    def asked(self, *messages: to_worker.LoadModel | to_worker.UnloadModel) -> list[object]:
        expected = len(self.told) + len(messages)
        for message in messages:
            self.loader.put(message)
        wait_for(lambda: len(self.told) + len(self.failures) == expected, "all to be told")
        return self.told


def test_a_model_is_loaded_once_and_dropped() -> None:
    """To load what is held is to say so again."""
    backend = FakeBackend(model=LARGER)
    loading = Loading(larger=backend)
    load, unload = to_worker.LoadModel("larger"), to_worker.UnloadModel("larger")
    told = loading.asked(load, load, unload, unload)
    assert [type(each) for each in told] == [ModelLoaded, ModelLoaded, ModelUnloaded, ModelUnloaded]
    assert isinstance(told[0], ModelLoaded)
    assert told[0].held.info == LARGER
    assert backend.loads == 1
    assert loading.models.get("larger") is None


@pytest.mark.parametrize(
    ("error", "fault", "words"),
    [
        (NoRoom("it takes 3 GB"), "no-memory", "it takes 3 GB"),
        (MemoryError("no"), "no-memory", "no"),
        (ValueError("there is no file"), "refused", "there is no file"),
        (FileNotFoundError("the disk is gone"), "unreadable", "the disk is gone"),
        (RuntimeError("odd"), "fault", "RuntimeError, see the worker's log"),
    ],
    ids=lambda value: str(value),
)
def test_a_load_that_fails_is_told_with_its_words(error: Exception, fault: str, words: str) -> None:
    """And the loader goes on."""
    loading = Loading(larger=error, toy=FakeBackend())
    failed, done = loading.asked(to_worker.LoadModel("larger"), to_worker.LoadModel("toy"))
    assert failed == ModelNotLoaded("larger", fault, words)  # type: ignore[arg-type]
    assert isinstance(done, ModelLoaded)


def test_a_load_that_loses_the_device_ends_the_worker() -> None:
    """No later batch could be computed."""
    loading = Loading(larger=cuda_error(719, "unspecified launch failure"))
    assert loading.asked(to_worker.LoadModel("larger")) == []
    (failure,) = loading.failures
    assert isinstance(failure, BackendBroken)


class Hangs(FakeBackend):
    """Loads for as long as it is not told to go on, and then uses the streams."""

    def __init__(self) -> None:
        super().__init__(model=LARGER)
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.warmed_up: list[int] = []

    def load(self, on_all: OnAll) -> Loaded:
        self.begun.set()
        assert self.go_on.wait(PATIENCE_S)
        on_all(self.warmed_up.append)
        return super().load(on_all)


@pytest.mark.parametrize("ends", ["later", "before the next"])
def test_a_load_that_hangs_is_left_alone(ends: str) -> None:
    """To unload the model gives it up: what comes next is done at once, and what the load comes to, should it
    ever end, is held by nobody and told to nobody."""
    hangs, toy = Hangs(), FakeBackend()
    loading = Loading(larger=hangs, toy=toy)
    loading.loader.put(to_worker.LoadModel("larger"))
    assert hangs.begun.wait(PATIENCE_S)
    told = loading.asked(to_worker.UnloadModel("larger"))
    assert told == [ModelUnloaded("larger")]
    if ends == "before the next":
        hangs.go_on.set()
    told = loading.asked(to_worker.LoadModel("toy"))
    wait_for(lambda: loading.models.get("toy") is not None, "the next model")
    hangs.go_on.set()
    told = loading.asked(to_worker.UnloadModel("toy"))
    assert hangs.warmed_up == []
    assert loading.models.get("larger") is None
    assert [type(each) for each in told] == [ModelUnloaded, ModelLoaded, ModelUnloaded]


class WarmsUp(FakeBackend):
    """Uses every stream as it loads, until it may go on."""

    in_use: threading.Event
    go_on: threading.Event

    def load(self, on_all: OnAll) -> Loaded:
        def warm_up(index: int) -> None:
            if index == 0:
                self.in_use.set()
                assert self.go_on.wait(PATIENCE_S)

        on_all(warm_up)
        return super().load(on_all)


def test_batches_of_other_models_go_on_while_one_is_loaded(house: House) -> None:
    """One stream warms up the new model; the other one computes."""
    limits = Limits(1000, 2, 2)
    first, larger = FakeBackend(limits), WarmsUp(limits, model=LARGER)
    larger.in_use, larger.go_on = threading.Event(), threading.Event()
    worker = WorkerLoop("worker-0", house.path, [first], house.reader, backend_of=lambda _: larger)
    with (
        running_dispatcher(house, listed=("larger",), others=()),
        in_a_thread(worker.run, worker.stop, "worker-0"),
        FrontEndPeer(house) as peer,
    ):
        peer.wait_until_ready()
        peer.say(LoadModel(1, "larger"))
        assert larger.in_use.wait(PATIENCE_S)
        for number in (1, 2, 3):
            peer.submit(number)
            assert peer.hear().id == number
        larger.go_on.set()
        while peer.models is None or len(peer.models.infos) < 2:
            peer.take_next()
        assert peer.models.infos == [MODEL, LARGER]
