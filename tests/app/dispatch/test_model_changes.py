"""Models are loaded and unloaded while images of others wait and run, without sockets and clock."""

from typing import Any

import msgspec
import pytest

from app.dispatch.fleet import Unexpected
from app.messages import to_worker
from app.messages.repository import ModelEntry
from app.messages.to_dispatcher import (
    Alive,
    Done,
    FrontEnd,
    Held,
    LoadModel,
    ModelLeft,
    ModelLoaded,
    ModelNotLoaded,
    ModelUnloaded,
    UnloadModel,
)
from app.messages.to_front_end import ModelChanged, Models, Outcomes, Repository
from app.messages.to_worker import Batch
from tests.app.dispatch.rig import ONE_STREAM, found, hello, measured
from tests.app.dispatch.test_dispatcher import FRONT, OTHER, SECOND, WORKER, Talk
from tests.app.fakes import LARGER, MODEL

LIMIT_S = 60.0
LARGE = {"model": LARGER.name, "size": LARGER.pixel_bytes}
TOY = Held(MODEL, measured(ONE_STREAM))
LARGE_ONE = Held(LARGER, measured(ONE_STREAM, 0.004))


class Repo(Talk):
    """Where the larger model may be loaded, and is served at first or not. ``left``: what is left for whoever
    starts anew."""

    def __init__(self, *served: str) -> None:
        self.left: list[list[str]] = []
        super().__init__(
            listed=(LARGER.name, "third"),
            others=served,
            remember=lambda names: self.left.append(list(names)),
            load_limit_s=LIMIT_S,
        )
        self.front_end()

    def both(self, peer: int = WORKER) -> None:
        self.worker(peer, models=(TOY, LARGE_ONE))

    def names(self, peer: int = FRONT) -> list[str]:
        """What the front end was told last is served."""
        return [info.name for info in self.heard(peer, Models)[-1].infos]

    def states(self, peer: int = FRONT) -> dict[str, str]:
        return {entry.name: entry.state for entry in self.heard(peer, Repository)[-1].models}

    def orders(self, peer: int = WORKER) -> list[Any]:
        kinds = to_worker.LoadModel | to_worker.UnloadModel
        return self.heard(peer, kinds)  # type: ignore[arg-type]

    def changed(self, peer: int = FRONT) -> list[tuple[int, str | None]]:
        return [(each.id, each.fault) for each in self.heard(peer, ModelChanged)]

    def later(self, seconds: float) -> None:
        """Both workers are heard of."""
        self.now += seconds
        for peer in (WORKER, SECOND):
            self.come(peer, Alive())

    def finish(self, batch: Batch, peer: int = WORKER) -> None:
        results = [found(order.ask, 1) for order in batch.images]
        self.come(peer, Done(batch.number, results, 0.01, len(results)))


def test_front_ends_hear_of_a_model_once_every_worker_holds_it() -> None:
    """One worker loads after the other, and who asked is answered when it is served."""
    talk = Repo()
    talk.worker(WORKER)
    talk.worker(SECOND)
    assert talk.names() == ["toy"]
    assert talk.states() == {"toy": "ready", "larger": "unloaded", "third": "unloaded"}
    talk.come(FRONT, LoadModel(7, "larger"))
    assert talk.states()["larger"] == "loading"
    assert talk.orders(WORKER) == [to_worker.LoadModel("larger")]
    assert talk.orders(SECOND) == []
    talk.come(WORKER, ModelLoaded(LARGE_ONE))
    assert talk.orders(SECOND) == [to_worker.LoadModel("larger")]
    assert talk.names() == ["toy"]
    assert talk.changed() == []
    talk.come(SECOND, ModelLoaded(LARGE_ONE))
    assert talk.names() == ["toy", "larger"]
    assert talk.changed() == [(7, None)]
    assert talk.states()["larger"] == "ready"
    assert talk.left == [["larger"]]
    talk.ask(1, **LARGE)
    (batch,) = talk.batches(WORKER) + talk.batches(SECOND)
    assert batch.model == "larger"


def test_what_was_accepted_is_answered_before_a_model_is_dropped() -> None:
    """Front ends are told first; workers drop it once no front end, no queue and no batch has any of it."""
    talk = Repo("larger")
    talk.front_end(OTHER)
    talk.both()
    talk.ask(1, **LARGE)
    (running,) = talk.batches()
    talk.ask(2, **LARGE)
    talk.come(FRONT, UnloadModel(3, "larger"))
    assert talk.names() == ["toy"]
    assert talk.names(OTHER) == ["toy"]
    assert talk.states()["larger"] == "unloading"
    talk.ask(3, **LARGE)  # it was being decoded
    talk.come(FRONT, ModelLeft("larger"))
    talk.finish(running)
    (later,) = talk.batches()
    assert len(later.images) == 2
    talk.finish(later)
    assert len([answer for outcomes in talk.heard(FRONT, Outcomes) for answer in outcomes.answers]) == 3
    assert talk.orders() == []
    assert talk.left == []
    talk.come(OTHER, ModelLeft("larger"))
    assert talk.orders() == [to_worker.UnloadModel("larger")]
    assert talk.left == [[]]
    assert talk.changed() == []
    talk.come(WORKER, ModelUnloaded("larger"))
    assert talk.changed() == [(3, None)]
    assert talk.states()["larger"] == "unloaded"
    talk.ask(9, **LARGE)
    (outcomes,) = talk.heard(FRONT, Outcomes)
    assert [refusal.reason for refusal in outcomes.refusals] == ["model-unloaded"]
    talk.ask(10)
    assert [batch.model for batch in talk.batches()] == ["toy"]


def test_a_batch_that_nobody_waits_for_any_more_is_finished_first() -> None:
    """Its images are withdrawn, but it is still being computed."""
    talk = Repo("larger")
    talk.both()
    talk.ask(1, **LARGE)
    (batch,) = talk.batches()
    talk.gone(FRONT)
    talk.front_end(OTHER)
    talk.come(OTHER, UnloadModel(1, "larger"), ModelLeft("larger"))
    assert talk.orders() == []
    talk.finish(batch)
    assert talk.orders() == [to_worker.UnloadModel("larger")]


def test_a_front_end_that_dies_does_not_hold_up_unloading() -> None:
    talk = Repo("larger")
    talk.front_end(OTHER)
    talk.both()
    talk.come(FRONT, UnloadModel(3, "larger"), ModelLeft("larger"))
    assert talk.orders() == []
    talk.gone(OTHER)
    assert talk.orders() == [to_worker.UnloadModel("larger")]


def test_a_load_that_fails_is_told_and_undone() -> None:
    """The words go to who asked and into the list; a worker that has the model drops it."""
    talk = Repo()
    talk.worker(WORKER)
    talk.worker(SECOND)
    talk.come(FRONT, LoadModel(7, "larger"))
    talk.come(WORKER, ModelLoaded(LARGE_ONE))
    talk.come(SECOND, ModelNotLoaded("larger", "no-memory", "it takes 3 GB"))
    assert talk.heard(FRONT, ModelChanged) == [ModelChanged(7, "no-memory", "it takes 3 GB")]
    assert talk.orders(WORKER) == [to_worker.LoadModel("larger"), to_worker.UnloadModel("larger")]
    assert ModelEntry("larger", "unloaded", "it takes 3 GB") in talk.heard(FRONT, Repository)[-1].models
    assert talk.names() == ["toy"]
    assert talk.left == []
    talk.come(WORKER, ModelUnloaded("larger"))
    talk.come(FRONT, LoadModel(8, "larger"))
    assert talk.orders(WORKER) == [to_worker.LoadModel("larger")]


def test_a_worker_that_dies_while_it_loads_fails_the_load() -> None:
    """The model may be why, as where memory runs out: it is not tried again by itself."""
    talk = Repo()
    talk.worker(WORKER)
    talk.worker(SECOND)
    talk.come(FRONT, LoadModel(7, "larger"))
    talk.gone(WORKER)
    assert talk.changed() == [(7, "worker-lost")]
    assert talk.orders(SECOND) == []
    talk.worker(WORKER + 2)
    assert talk.orders(WORKER + 2) == []


def test_one_change_at_a_time() -> None:
    """Who asks for the same is answered with the others; who asks for another is told to come back."""
    talk = Repo()
    talk.front_end(OTHER)
    talk.worker()
    talk.come(FRONT, LoadModel(1, "larger"))
    talk.come(OTHER, LoadModel(1, "larger"), LoadModel(2, "third"), UnloadModel(3, "larger"))
    assert talk.changed(OTHER) == [(2, "busy"), (3, "busy")]
    talk.come(WORKER, ModelLoaded(LARGE_ONE))
    assert (talk.changed(FRONT), talk.changed(OTHER)) == ([(1, None)], [(1, None)])


def test_what_is_so_already_is_answered_at_once_and_the_default_model_stays() -> None:
    talk = Repo("larger")
    talk.both()
    talk.come(FRONT, LoadModel(1, "larger"), UnloadModel(2, "third"), UnloadModel(3, "toy"))
    assert talk.changed() == [(1, None), (2, None), (3, "default")]
    assert talk.orders() == []


def test_without_a_worker_nothing_is_loaded() -> None:
    talk = Repo()
    talk.come(FRONT, LoadModel(1, "larger"))
    assert talk.changed() == [(1, "no-worker")]


def test_a_model_that_is_not_listed_is_none_that_a_front_end_asks_for() -> None:
    talk = Repo()
    talk.worker()
    with pytest.raises(Unexpected):
        talk.come(FRONT, LoadModel(1, "/etc/passwd"))
    plain = Talk()
    plain.front_end()
    with pytest.raises(Unexpected):
        plain.come(FRONT, LoadModel(1, "toy"))


def test_a_worker_that_comes_with_less_or_more_is_put_right_first() -> None:
    """It gets no batch before it holds what is served, and drops what is not."""
    talk = Repo("larger")
    third = Held(msgspec.structs.replace(MODEL, name="third"), measured(ONE_STREAM))
    talk.come(WORKER, hello("worker-0", models=(TOY, third)))
    assert talk.orders() == [to_worker.UnloadModel("third"), to_worker.LoadModel("larger")]
    talk.ask(1)
    assert talk.batches() == []
    talk.come(WORKER, ModelLoaded(LARGE_ONE))
    assert talk.names() == ["toy", "larger"]
    assert [batch.model for batch in talk.batches()] == ["toy"]


def test_a_worker_that_cannot_load_what_is_served_is_sent_away() -> None:
    talk = Repo("larger")
    talk.come(WORKER, hello())
    with pytest.raises(Unexpected, match="cannot load larger, which is served: gone"):
        talk.come(WORKER, ModelNotLoaded("larger", "refused", "gone"))


def test_workers_that_load_different_models_under_a_name_serve_neither() -> None:
    talk = Repo()
    talk.worker(WORKER)
    talk.worker(SECOND)
    talk.come(FRONT, LoadModel(1, "larger"))
    talk.come(WORKER, ModelLoaded(LARGE_ONE))
    other = Held(msgspec.structs.replace(LARGER, labels=tuple("abcdefg")), measured(ONE_STREAM))
    talk.come(SECOND, ModelLoaded(other))
    assert talk.changed() == [(1, "differs")]
    for peer in (WORKER, SECOND):
        assert talk.orders(peer) == [to_worker.LoadModel("larger"), to_worker.UnloadModel("larger")]


def test_a_successor_is_told_by_the_workers_and_undoes_what_nobody_asked_of_it() -> None:
    """A dispatcher that died while a model was loaded: the worker that holds it already drops it."""
    talk = Repo()
    talk.both()
    assert talk.orders() == [to_worker.UnloadModel("larger")]
    talk.come(WORKER, ModelLoaded(LARGE_ONE))  # it was still loading when it connected
    assert talk.orders() == [to_worker.UnloadModel("larger")]
    assert talk.names() == ["toy"]


def test_a_front_end_that_comes_while_a_model_is_unloaded_does_not_hear_of_it() -> None:
    talk = Repo("larger")
    talk.both()
    talk.come(FRONT, UnloadModel(1, "larger"))
    talk.come(OTHER, FrontEnd(1))
    assert talk.names(OTHER) == ["toy"]
    assert talk.states(OTHER)["larger"] == "unloading"
    talk.come(FRONT, ModelLeft("larger"))
    assert talk.orders() == [to_worker.UnloadModel("larger")]


def test_the_last_worker_dies_while_a_model_is_unloaded() -> None:
    """What was accepted waits for the next one, which still loads it."""
    talk = Repo("larger")
    talk.both()
    talk.ask(1, **LARGE)
    talk.come(FRONT, UnloadModel(1, "larger"), ModelLeft("larger"))
    talk.gone(WORKER)
    assert talk.left == []
    talk.both(SECOND)
    (batch,) = talk.batches(SECOND)
    talk.finish(batch, SECOND)
    assert talk.orders(SECOND) == [to_worker.UnloadModel("larger")]
    assert talk.left == [[]]
    talk.gone(SECOND)
    assert talk.changed() == [(1, None)]


def test_a_load_that_hangs_is_given_up() -> None:
    """Each worker has its own time. Who asked is told, the worker too, and images of others go on; then it
    may be tried again."""
    talk = Repo()
    talk.worker(WORKER)
    talk.worker(SECOND)
    talk.come(FRONT, LoadModel(7, "larger"))
    talk.later(LIMIT_S - 1)
    talk.come(WORKER, ModelLoaded(LARGE_ONE))
    talk.later(LIMIT_S - 1)
    assert talk.changed() == []
    talk.ask(1)
    assert len(talk.batches(WORKER) + talk.batches(SECOND)) == 1
    talk.later(1.5)
    (changed,) = talk.heard(FRONT, ModelChanged)
    assert (changed.id, changed.fault) == (7, "too-slow")
    assert "longer than 60 s (--load-limit-s)" in changed.words
    for peer in (WORKER, SECOND):
        assert talk.orders(peer) == [to_worker.LoadModel("larger"), to_worker.UnloadModel("larger")]
    assert talk.names() == ["toy"]
    assert talk.states()["larger"] == "unloaded"
    talk.later(10 * LIMIT_S)
    assert talk.changed() == []
    talk.come(FRONT, LoadModel(8, "larger"))
    talk.come(SECOND, ModelLoaded(LARGE_ONE))  # the load that hung had ended in that moment
    talk.come(WORKER, ModelUnloaded("larger"), ModelLoaded(LARGE_ONE))
    assert talk.orders(SECOND) == [to_worker.LoadModel("larger")]
    assert talk.changed() == []
    talk.come(SECOND, ModelUnloaded("larger"), ModelLoaded(LARGE_ONE))
    assert talk.changed() == [(8, None)]
    assert talk.names() == ["toy", "larger"]
