"""The engine's loop: a real engine on a real socket, with a backend that waits and fails on purpose."""

import asyncio
import subprocess
import sys
import threading
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import REGISTRY

from app.engine import loop
from app.engine.messages import Answer, Cancel, Ping, Refuse, Submit, encode
from app.engine.parts import BackendBroken
from app.engine.scheduler import Limits
from app.engine.shares import shares, tokens
from app.errors import InternalFault
from models.cascade import second_run_compute
from models.schedule import Pruning, compute, macs
from tests.app.engine.rig import (
    ONE_AT_A_TIME,
    ONE_STREAM,
    PATIENCE_S,
    FakeBackend,
    Peer,
    ask_behind,
    begun,
    busy_engine,
    connected,
    noise,
    pixels,
    question,
    ready_client,
    running_engine,
    submit,
    until,
    wait_for,
)
from tests.app.fakes import LOGITS, MODEL

pytestmark = pytest.mark.anyio


def weight(asked: Submit) -> int:
    return tokens(MODEL, shares(MODEL, asked.pruning, asked.margin, asked.min_keep_ratio)[0])


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


# Loading and stopping.


def test_an_engine_that_loads_says_so_and_refuses_images(address: str) -> None:
    """Until the model is there a ping is answered with no model, and an image with not-ready."""
    backend = FakeBackend()
    backend.may_load.clear()
    with running_engine(backend, address), Peer(address) as peer:
        assert peer.status().model is None
        peer.say(submit(5), pixels(5))
        assert peer.hear() == Refuse(id=5, reason="not-ready", retry_after_s=1.0)
        backend.may_load.set()
        peer.wait_until_ready()
        assert peer.status().model == MODEL


@pytest.mark.parametrize("error", [OSError("no such file"), SystemExit(3)], ids=repr)
def test_a_model_that_cannot_be_loaded_ends_the_engine(address: str, error: BaseException) -> None:
    """What load raises comes out of run: an engine without a model must not look alive."""
    with (
        pytest.raises(type(error)) as caught,
        running_engine(FakeBackend(load_error=error), address) as engine,
    ):
        assert engine.ended()
    assert caught.value is error


def test_stop_while_loading_ends_the_engine(address: str) -> None:
    """An engine that is told to stop does not finish loading first."""
    backend = FakeBackend()
    backend.may_load.clear()
    with running_engine(backend, address) as running:
        running.engine.stop()
        assert running.ended()


async def test_stop_finishes_what_was_accepted(address: str) -> None:
    """Images that wait or are computed when the engine is told to stop are answered before it ends."""
    backend = FakeBackend(ONE_AT_A_TIME)
    with running_engine(backend, address) as running:
        async with ready_client(address) as client:
            asked = await ask_behind(client, backend, *(question(number) for number in (1, 2, 3)))
            with Peer(address) as peer:
                await until(lambda: peer.status().waiting_tokens == 2 * 17, "two images to wait")
            running.engine.stop()
            backend.may_answer.set()
            answers = await asyncio.gather(*asked)
        assert [answer.answer.classes[0] for answer in answers] == [1, 2, 3]
        assert await asyncio.to_thread(running.ended)


def test_front_ends_hear_which_of_their_images_are_being_computed(address: str) -> None:
    """Each hears of its own images, before their answers."""
    backend = FakeBackend(ONE_STREAM)
    with running_engine(backend, address), Peer(address) as peer, Peer(address) as other:
        peer.wait_until_ready()
        other.wait_until_ready()
        backend.may_answer.clear()
        peer.say(submit(1), pixels(1))
        assert backend.next_batch() == [1]
        for number in (2, 3):
            peer.say(submit(number), pixels(number))
        peer.status()  # it has both
        other.say(submit(4), pixels(4))
        other.status()
        backend.may_answer.set()
        assert [peer.hear().id for _ in range(3)] == [1, 2, 3]  # type: ignore[union-attr]
        assert other.hear().id == 4  # type: ignore[union-attr]
        assert peer.begun == [[1], [2, 3]]
        assert other.begun == [[4]]


def test_every_start_is_another_incarnation(address: str) -> None:
    """Front ends can tell a restarted engine from the one before it."""
    incarnations = set()
    for _ in range(2):
        with running_engine(FakeBackend(), address), Peer(address) as peer:
            incarnations.add(peer.status().incarnation)
            incarnations.add(peer.status().incarnation)
    assert len(incarnations) == 2


_DYING = """
import sys
from app.engine.loop import Engine
from app.engine.messages import encode
from tests.app.engine.rig import FakeBackend, Peer, pixels, submit

class Dying(FakeBackend):
    def classify(self, jobs, threads):
        raise SystemExit("as a C extension may")

import threading
address = sys.argv[1]
def ask():
    with Peer(address) as peer:
        peer.wait_until_ready()
        peer.say(submit(), pixels())
        peer.hear()
threading.Thread(target=ask, daemon=True).start()
Engine("cpu:0", address, Dying()).run()
"""


def test_a_compute_thread_that_dies_takes_the_process_with_it(address: str) -> None:
    """A thread that is gone cannot compute, so the process ends and health does not stay green."""
    ended = subprocess.run(
        [sys.executable, "-c", _DYING, address], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 1
    assert "as a C extension may" in ended.stderr


# Answers.


async def test_an_image_is_answered_with_what_the_backend_found(address: str) -> None:
    """The answer's fields are the backend's result; queue and compute times are there."""
    backend = FakeBackend()
    with running_engine(backend, address):
        async with ready_client(address) as client:
            asked = question(
                4, keep_ratio=0.5, criterion="mad", reducer="fuse", top_k=2, seed=19, kept_patches=True
            )
            classified = await client.classify(asked)
    answer = classified.answer
    assert answer.classes == [4, 5]
    assert answer.scores == [0.5, 0.25]
    assert answer.kept_counts == (8, 4)
    assert answer.compute == compute(MODEL.architecture, MODEL.method.stages, 0.5, "fuse")
    assert (answer.keep_ratio, answer.runs) == (0.5, 1)
    assert answer.queue_s >= 0
    assert answer.compute_s >= 0
    assert [stage.tolist() for stage in classified.kept] == [list(range(7, 15)), list(range(11, 15))]
    assert [stage.dtype.name for stage in classified.kept] == ["uint16", "uint16"]
    (job,) = backend.seen
    assert job.pixels == pixels(4)
    assert job.submit.pruning == Pruning(0.5, "mad", "fuse", seed=19)
    assert (job.submit.top_k, job.submit.kept_patches, job.submit.margin) == (2, True, None)


async def test_an_image_that_a_cascade_is_unsure_of_says_so(address: str) -> None:
    """The margin reaches the backend; number of runs, ratio and compute of both come back."""
    backend = FakeBackend(unsure={5})
    with running_engine(backend, address):
        async with ready_client(address) as client:
            sure, unsure = [
                (await client.classify(question(number, keep_ratio=0.5, margin=0.25))).answer
                for number in (4, 5)
            ]
    assert [job.submit.margin for job in backend.seen] == [0.25, 0.25]
    assert (sure.runs, sure.keep_ratio, sure.kept_counts) == (1, 0.5, (8, 4))
    assert (unsure.runs, unsure.keep_ratio, unsure.kept_counts) == (2, 1.0, (15, 15))
    assert sure.compute < 1 < unsure.compute


async def test_kept_patches_are_sent_only_where_they_are_asked_for(address: str) -> None:
    """Without a mask no indices travel."""
    with running_engine(FakeBackend(), address):
        async with ready_client(address) as client:
            assert (await client.classify(question(keep_ratio=0.5))).kept == ()


@pytest.mark.parametrize("kept", [False, True])
async def test_logits_are_sent_to_those_who_ask(address: str, kept: bool) -> None:
    """Float32, of every class, behind the kept patches where these are asked for too."""
    with running_engine(FakeBackend(), address):
        async with ready_client(address) as client:
            asked = await client.classify(question(keep_ratio=0.5, kept_patches=kept, logits=True))
            plain = await client.classify(question(keep_ratio=0.5, kept_patches=kept))
    assert asked.logits is not None
    assert (asked.logits.dtype, asked.logits.tolist()) == (np.float32, list(LOGITS))
    assert plain.logits is None
    assert [stage.tolist() for stage in asked.kept] == [stage.tolist() for stage in plain.kept]
    assert len(asked.kept) == (2 if kept else 0)


async def test_images_that_wait_are_computed_together_and_each_gets_its_own(address: str) -> None:
    """A batch forms by itself while compute is busy, and no answer goes to the wrong image."""
    backend = FakeBackend()
    with running_engine(backend, address), Peer(address) as peer:
        async with ready_client(address) as client:
            asked = await ask_behind(client, backend, *(question(number) for number in range(1, 8)))
            await until(lambda: peer.status().waiting_tokens == 6 * 17, "six images to wait")
            backend.may_answer.set()
            answers = await asyncio.gather(*asked)
            assert await begun(backend) == [2, 3, 4, 5, 6, 7]
    assert [answer.answer.classes[0] for answer in answers] == [1, 2, 3, 4, 5, 6, 7]


def test_streams_compute_at_the_same_time_and_a_lone_image_has_all_threads(address: str) -> None:
    """Two streams hold a batch each at once; what runs alone is given every thread."""
    backend = FakeBackend(Limits(batch_tokens=1, queue_images=100, threads=3, streams=2))
    with busy_engine(backend, address) as peer:
        for number in (2, 3):
            peer.say(submit(number), pixels(number))
        assert peer.status().waiting_tokens == 2 * 17, "a stream is free, but no thread is"
        backend.together = threading.Barrier(2)
        backend.may_answer.set()
        answers = [peer.hear() for _ in range(3)]
        assert all(isinstance(answer, Answer) for answer in answers), "the streams did not meet"
    assert sorted(backend.threads) == [1, 1, 3]
    assert sorted(backend.numbers) == [1, 2, 3]


async def test_front_ends_with_the_same_ids_get_each_its_own_answer(address: str) -> None:
    """Ids are counted by every front end for itself."""
    with running_engine(FakeBackend(), address):
        async with ready_client(address) as one, ready_client(address) as other:
            answers = await asyncio.gather(one.classify(question(3)), other.classify(question(8)))
    assert [answer.answer.classes[0] for answer in answers] == [3, 8]
    assert [answer.answer.id for answer in answers] == [1, 1]


def test_a_suspect_is_computed_alone_whoever_else_asks(address: str) -> None:
    """It waits for what runs, goes before what waits, and nothing of any front end runs beside it."""
    backend = FakeBackend(Limits(batch_tokens=1000, queue_images=100, threads=2, streams=2))
    backend.may_answer.clear()
    with running_engine(backend, address), Peer(address) as peer, Peer(address) as other:
        peer.wait_until_ready()
        other.wait_until_ready()
        peer.say(submit(1), pixels(1))
        assert backend.next_batch() == [1]
        for sender, number, suspect in ((other, 2, 1), (peer, 3, 1), (peer, 4, 1), (other, 5, 0)):
            sender.say(submit(number, suspect=bool(suspect)), pixels(number))
            sender.status()  # it has come
        peer.say(Cancel(id=3))
        peer.status()
        assert other.begun == [], "one stream is free, but what runs might take a suspect with it"
        backend.may_answer.set()
        assert [other.hear().id for _ in range(2)] == [2, 5]  # type: ignore[union-attr]
        assert [peer.hear().id for _ in range(2)] == [1, 4]  # type: ignore[union-attr]
        assert (other.begun, peer.begun) == ([[2], [5]], [[1], [4]])
    assert backend.numbers == [1, 2, 4, 5]


def test_an_image_sent_twice_is_computed_and_answered_once(address: str) -> None:
    """A front end that saw a restart may send again what had arrived after all, running or waiting."""
    backend = FakeBackend(ONE_AT_A_TIME)
    with busy_engine(backend, address) as peer:
        for number in (1, 2, 1, 2):
            peer.say(submit(number), pixels(number))
        assert peer.status().waiting_tokens == 17
        backend.may_answer.set()
        answers = [peer.hear(), peer.hear()]
        assert [isinstance(answer, Answer) and answer.id for answer in answers] == [1, 2]
        peer.status()  # nothing else was said before it
    assert backend.numbers == [1, 2]


# Refusals.


def test_a_full_queue_refuses_and_what_waits_is_still_answered(address: str) -> None:
    """An image too many is refused at once, and costs nobody else their answer."""
    backend = FakeBackend(Limits(batch_tokens=1, queue_images=2, threads=1, streams=1))
    with busy_engine(backend, address) as peer:
        for number in (2, 3, 4):
            peer.say(submit(number), pixels(number))
        refused = peer.hear()
        assert isinstance(refused, Refuse)
        assert (refused.id, refused.reason) == (4, "queue-full")
        assert refused.retry_after_s is not None, "when there will be a place is predicted"
        assert 0 < refused.retry_after_s < PATIENCE_S
        backend.may_answer.set()
        answers = [peer.hear() for _ in range(3)]
        assert [isinstance(answer, Answer) and answer.id for answer in answers] == [1, 2, 3]


def test_an_image_whose_deadline_passes_while_it_waits_is_refused_and_never_computed(address: str) -> None:
    """Nobody computes what comes too late, and whoever waits for it is told."""
    backend = FakeBackend(ONE_AT_A_TIME)
    with busy_engine(backend, address) as peer:
        peer.say(submit(2, deadline_s=0.05), pixels(2))
        peer.say(submit(3, deadline_s=-1.0), pixels(3))
        refused = [peer.hear(), peer.hear()]
        for number in (2, 3):
            assert Refuse(id=number, reason="deadline-passed", retry_after_s=1.0) in refused
        backend.may_answer.set()
        answer = peer.hear()
        assert isinstance(answer, Answer)
        assert answer.id == 1
        assert peer.status().waiting_tokens == 0
    assert backend.numbers == [1]


def test_an_image_is_refused_when_its_time_is_over_and_not_when_somebody_comes(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that hears nothing and finishes nothing wakes for it."""
    backend = FakeBackend(ONE_AT_A_TIME)
    with busy_engine(backend, address) as peer:
        monkeypatch.setattr(loop, "_POLL_LIMIT_S", 1000.0)
        peer.say(submit(2, deadline_s=1.0), pixels(2))
        try:
            assert peer.hear() == Refuse(id=2, reason="deadline-passed", retry_after_s=1.0)
        finally:
            monkeypatch.undo()
            peer.say(Ping())  # it looks up, and waits no longer than before


def test_a_cancelled_image_leaves_the_queue_and_is_never_computed(address: str) -> None:
    """Cancelling what waits frees its place; cancelling what runs, or is unknown, does no harm."""
    backend = FakeBackend(ONE_AT_A_TIME)
    with busy_engine(backend, address) as peer:
        for number in (2, 3):
            peer.say(submit(number), pixels(number))
        for number in (2, 1, 99):
            peer.say(Cancel(id=number))
        assert peer.status().waiting_tokens == 17
        backend.may_answer.set()
        answers = [peer.hear(), peer.hear()]
        assert [isinstance(answer, Answer) and answer.id for answer in answers] == [1, 3]
        peer.say(submit(2), pixels(2))
        again = peer.hear()
        assert isinstance(again, Answer), "a cancelled id may be used again"
    assert backend.numbers == [1, 3, 2]


# Faults.


@pytest.mark.parametrize(
    ("fault", "words", "logged"),
    [
        ({"poisoned": {2}}, "failed on this image", "computing it alone failed"),
        ({"speechless": {2}}, "not finite numbers", "its scores are no finite numbers"),
    ],
    ids=["raises", "NaN"],
)
async def test_only_the_image_at_fault_is_refused(
    address: str, fault: dict[str, Any], words: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The images of its batch are answered; it is told why, the log has it once, and it is counted."""
    backend = FakeBackend(**fault)
    reason = "engine-fault" if "poisoned" in fault else "no-number"
    before = metric("trimvit_images_failed_total", reason=reason)
    with running_engine(backend, address), Peer(address) as peer:
        async with ready_client(address) as client:
            asked = await ask_behind(client, backend, *(question(number) for number in (1, 2, 3, 4, 5)))
            await until(lambda: peer.status().waiting_tokens == 4 * 17, "four images to wait")
            backend.may_answer.set()
            first, second, *others = await asyncio.gather(*asked, return_exceptions=True)
            assert isinstance(second, InternalFault)
            assert words in second.detail
            for number, other in zip((1, 3, 4, 5), (first, *others), strict=True):
                assert not isinstance(other, BaseException)
                assert other.answer.classes[0] == number
            assert (await client.classify(question(6))).answer.classes[0] == 6
    assert caplog.text.count(logged) == 1
    assert ("RuntimeError: poisoned" in caplog.text) == ("poisoned" in fault), "the traceback is in the log"
    assert metric("trimvit_images_failed_total", reason=reason) == before + 1


@pytest.mark.parametrize(
    "fault",
    [{"broken": True}, {"miscounts": 1}, {"speechless": set(range(11))}],
    ids=["raises", "miscounts", "NaN"],
)
def test_a_backend_that_can_compute_nothing_ends_the_engine(address: str, fault: dict[str, Any]) -> None:
    """A broken device must not answer 500s under green health: its process ends, to be replaced."""

    def ask() -> None:
        with running_engine(FakeBackend(**fault), address) as running, Peer(address) as peer:
            peer.wait_until_ready()
            peer.say(submit(1), pixels(1))
            assert running.ended()

    with pytest.raises(BackendBroken, match="blank image"):
        ask()


async def test_what_a_broken_engine_had_is_answered_by_its_successor(address: str) -> None:
    """Nobody pays for a broken device: its batch is computed again, one image at a time."""
    async with connected(address) as client:
        asked = [asyncio.create_task(client.classify(question(number))) for number in (1, 2, 3)]

        async def break_down() -> None:
            with running_engine(FakeBackend(broken=True), address) as running:
                assert await asyncio.to_thread(running.ended)

        with pytest.raises(BackendBroken):
            await break_down()
        with running_engine(FakeBackend(), address):
            answers = await asyncio.gather(*asked)
    assert [answer.answer.classes[0] for answer in answers] == [1, 2, 3]


async def test_a_wrong_number_of_results_goes_to_nobody(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One result too few must not be dealt out to the wrong images: the batch is computed in parts."""
    backend = FakeBackend(miscounts=2)
    with running_engine(backend, address), Peer(address) as peer:
        async with ready_client(address) as client:
            asked = await ask_behind(client, backend, *(question(number) for number in (1, 2, 3)))
            await until(lambda: peer.status().waiting_tokens == 2 * 17, "two images to wait")
            backend.may_answer.set()
            answers = await asyncio.gather(*asked)
    assert [answer.answer.classes[0] for answer in answers] == [1, 2, 3]
    assert "2 images went in, 1 results came out" in caplog.text


def _spoilt(**pruning: object) -> bytes:
    """A Submit of which only the pruning is wrong."""
    sound = msgspec.to_builtins(submit(7))
    return noise({**sound, "pruning": {**sound["pruning"], **pruning}})


_NONSENSE: dict[str, list[bytes]] = {
    "an empty frame": [b""],
    "no msgpack": [b"\xc1\xc1"],
    "text": [b"GET / HTTP/1.1\r\n\r\n", b""],
    "msgpack of another shape": [noise([1, 2, 3])],
    "an engine's message": [
        noise({"type": "Status", "incarnation": "x", "model": None, "waiting_tokens": 0})
    ],
    "an image without its pixels": [encode(submit(7))],
    "a keep ratio of 0": [_spoilt(keep_ratio=0.0), pixels()],
    "a keep ratio that is no number": [_spoilt(keep_ratio=float("nan")), pixels()],
    "a keep mass above 1": [_spoilt(keep_mass=1.5), pixels()],
    "a seed that no tensor holds": [_spoilt(seed=2**63), pixels()],
}


@pytest.mark.parametrize("frames", _NONSENSE.values(), ids=_NONSENSE.keys())
def test_nonsense_does_not_stop_the_engine(
    address: str, frames: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a peer sends, it is logged, and the others are answered."""
    with running_engine(FakeBackend(), address), Peer(address) as peer, Peer(address) as other:
        peer.wait_until_ready()
        peer.send(*frames)
        peer.status()
        other.say(submit(3), pixels(3))
        assert isinstance(other.hear(), Answer)
    assert "a front end sent what is no message" in caplog.text


def test_a_flood_of_nonsense_is_told_once(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """A peer that sends thousands of frames that are no message cannot fill the log, and delays nobody."""
    with running_engine(FakeBackend(), address), Peer(address) as peer, Peer(address) as other:
        peer.wait_until_ready()
        for _ in range(5000):
            peer.send(b"\xc1\xc1")
        other.say(submit(3), pixels(3))
        assert isinstance(other.hear(), Answer)
        peer.status()
    assert caplog.text.count("a front end sent what is no message") == 1
    assert "Traceback" not in caplog.text


def test_pixels_of_another_size_are_refused_before_they_reach_a_batch(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Pixels that do not fit the model must not fail the images they would be computed with."""
    backend = FakeBackend()
    with running_engine(backend, address), Peer(address) as peer:
        peer.wait_until_ready()
        peer.say(submit(1), pixels(1)[:-1])
        assert peer.hear() == Refuse(id=1, reason="engine-fault", retry_after_s=1.0)
        peer.say(submit(2), pixels(2))
        assert isinstance(peer.hear(), Answer)
    assert backend.numbers == [2]
    assert "2204 bytes of pixels, not 2205" in caplog.text


# Front ends that go.


_FRONT_END = """
import sys, time
from tests.app.engine.rig import Peer, pixels, submit

with Peer(sys.argv[1]) as peer:
    peer.wait_until_ready()
    for number in range(2, 42):
        peer.say(submit(number), pixels(number))
    for number in range(42, 44):
        peer.say(submit(number, suspect=True), pixels(number))
    peer.status()
    print("sent", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_front_end_had_waiting_is_computed_for_nobody(address: str) -> None:
    """kill -9 of a process with a full queue frees its places at once, its suspects' too; another front end's
    images stay, and a new one with the same ids hears nothing of the old one's."""
    backend = FakeBackend(ONE_AT_A_TIME)
    backend.may_answer.clear()
    with running_engine(backend, address) as running, Peer(address) as peer:
        peer.wait_until_ready()
        peer.say(submit(1), pixels(1))
        assert backend.next_batch() == [1]
        peer.say(submit(2), pixels(99))
        front_end = subprocess.Popen(
            [sys.executable, "-c", _FRONT_END, address], stdout=subprocess.PIPE, text=True
        )
        with front_end:
            assert front_end.stdout is not None
            assert front_end.stdout.readline() == "sent\n"
            assert "2 front ends, 44 images, 2 suspects" in repr(running.engine)
            front_end.kill()
        # Nothing else wakes the engine, nor tells it that somebody is silent: it hears of the end itself.
        wait_for(
            lambda: "1 front ends, 2 images, 0 suspects" in repr(running.engine), "the places to be free"
        )
        assert peer.status().waiting_tokens == 17
        with Peer(address) as successor:
            successor.wait_until_ready()
            successor.say(submit(2), pixels(5))
            backend.may_answer.set()
            answer = successor.hear()
            assert isinstance(answer, Answer)
            assert (answer.id, answer.classes[0]) == (2, 5)
            assert [peer.hear().id for _ in range(2)] == [1, 2]  # type: ignore[union-attr]
    assert sorted(backend.numbers) == [1, 5, 99]


def test_the_answers_of_a_front_end_that_has_gone_are_dropped(address: str) -> None:
    """What was being computed for it ends, goes to nobody, and the engine goes on."""
    backend = FakeBackend(ONE_AT_A_TIME)
    backend.may_answer.clear()
    with running_engine(backend, address) as running, Peer(address) as peer:
        peer.wait_until_ready()
        with Peer(address) as other:
            other.wait_until_ready()
            other.say(submit(1), pixels(1))
            assert backend.next_batch() == [1]
        wait_for(lambda: "1 front ends, 1 images" in repr(running.engine), "the end to be heard of")
        backend.may_answer.set()
        wait_for(lambda: "1 front ends, 0 images" in repr(running.engine), "the batch to end")
        peer.say(submit(1), pixels(7))
        answer = peer.hear()
        assert isinstance(answer, Answer)
        assert answer.classes[0] == 7


def test_a_storm_of_cancelled_images_leaves_nothing_behind(address: str) -> None:
    """Five thousand images that are withdrawn right after they came leave no job, no token and no place."""
    limits = Limits(batch_tokens=1, queue_images=10_000, threads=1, streams=1, queue_s=1e6)
    backend = FakeBackend(limits)
    backend.may_answer.clear()
    with running_engine(backend, address) as running, Peer(address) as peer:
        peer.wait_until_ready()
        peer.say(submit(1, deadline_s=1e6), pixels(1))
        assert backend.next_batch() == [1]
        for number in range(2, 5002):
            peer.say(submit(number, caller=f"caller {number}", deadline_s=1e6), pixels(2))
            peer.say(Cancel(id=number))
        assert peer.status().waiting_tokens == 0
        assert "1 images, 0 suspects, <Scheduler 0 waiting (0 tokens)" in repr(running.engine)
        backend.may_answer.set()
        assert peer.hear().id == 1  # type: ignore[union-attr]
        peer.status()
        assert "0 images, 0 suspects" in repr(running.engine)
    assert backend.numbers == [1]


# Metrics.


async def test_a_batch_is_measured(address: str) -> None:
    """Batches, patches, compute and ratios are counted as they were computed."""
    names = [
        "trimvit_batch_images_count",
        "trimvit_batch_images_sum",
        "trimvit_batch_tokens_sum",
        "trimvit_batch_fill_sum",
        "trimvit_batch_seconds_count",
        "trimvit_patches_kept_total",
        "trimvit_patches_pruned_total",
        "trimvit_compute_unpruned_macs_total",
        "trimvit_compute_saved_macs_total",
        "trimvit_applied_keep_ratio_count",
        "trimvit_applied_keep_ratio_sum",
    ]
    backend = FakeBackend(ONE_STREAM)
    with running_engine(backend, address, "engine-0"), Peer(address) as peer:
        async with ready_client(address) as client:
            before = {name: metric(name) for name in names}
            forms = {form: metric("trimvit_batches_total", form=form) for form in ("dense", "ragged")}
            ratios = [1.0, 0.5, 0.8]
            asked = await ask_behind(client, backend, *(question(keep_ratio=ratio) for ratio in ratios))
            await until(lambda: peer.status().waiting_tokens > 17, "two images to wait")
            await until(lambda: metric("trimvit_queue_images", engine="engine-0") == 2, "them to be shown")
            backend.may_answer.set()
            await asyncio.gather(*asked)
            await until(lambda: metric("trimvit_batch_images_count") - before[names[0]] == 2, "two batches")
            peer.status()  # the loop has come round: all of the batch is counted
    arch, stages = MODEL.architecture, MODEL.method.stages
    unpruned = macs(arch, stages, (15, 15))
    shares = [compute(arch, stages, ratio) for ratio in ratios]
    tokens = [17, *(round(17 * share) for share in shares[1:])]
    after = {name: metric(name) - before[name] for name in names}
    for form, count in forms.items():
        assert metric("trimvit_batches_total", form=form) - count == 1
    assert after == pytest.approx(
        {
            "trimvit_batch_images_count": 2,
            "trimvit_batch_images_sum": 3,
            "trimvit_batch_tokens_sum": sum(tokens),
            "trimvit_batch_fill_sum": sum(tokens) / ONE_STREAM.batch_tokens,
            "trimvit_batch_seconds_count": 2,
            "trimvit_patches_kept_total": 15 + 4 + 10,
            "trimvit_patches_pruned_total": 0 + 11 + 5,
            "trimvit_compute_unpruned_macs_total": 3 * unpruned,
            "trimvit_compute_saved_macs_total": unpruned * (3 - sum(shares)),
            "trimvit_applied_keep_ratio_count": 3,
            "trimvit_applied_keep_ratio_sum": 2.3,
        }
    )
    assert metric("trimvit_queue_images", engine="engine-0") == 0
    assert metric("trimvit_queue_tokens", engine="engine-0") == 0
    assert metric("trimvit_device_memory_bytes", engine="engine-0") == 1234


async def test_second_runs_are_measured_apart(address: str) -> None:
    """What pruning saved is the first run's; what second runs cost, and how many there were, is counted
    apart, so that no counter falls. The applied ratio is the answer's."""
    names = [
        "trimvit_second_runs_total",
        "trimvit_compute_second_runs_macs_total",
        "trimvit_compute_saved_macs_total",
        "trimvit_applied_keep_ratio_sum",
        "trimvit_patches_kept_total",
    ]
    backend = FakeBackend(unsure={2})
    before = {name: metric(name) for name in names}
    with running_engine(backend, address), Peer(address) as peer:
        async with ready_client(address) as client:
            for number in (1, 2):
                await client.classify(question(number, keep_ratio=0.5, reducer="fuse", margin=0.25))
            await client.classify(question(3, keep_mass=0.75))
        peer.status()  # the loop has come round: all of the batch is counted
    arch, stages = MODEL.architecture, MODEL.method.stages
    unpruned = macs(arch, stages, (15, 15))
    cheap, by_mass = compute(arch, stages, 0.5, "fuse"), compute(arch, stages, 12 / 15)
    assert {name: metric(name) - before[name] for name in names} == pytest.approx(
        {
            "trimvit_second_runs_total": 1,
            "trimvit_compute_second_runs_macs_total": unpruned * second_run_compute(arch, stages),
            "trimvit_compute_saved_macs_total": unpruned * (2 * (1 - cheap) + 1 - by_mass),
            "trimvit_applied_keep_ratio_sum": 0.5 + 1 + 12 / 15,
            "trimvit_patches_kept_total": 4 + 15 + 10,
        }
    )


@pytest.mark.parametrize(
    ("one", "other", "form"),
    [
        ({"keep_ratio": 0.5}, {"keep_ratio": 0.5, "criterion": "mad"}, "dense"),
        ({"keep_ratio": 0.5}, {"keep_ratio": 0.5, "reducer": "merge"}, "dense"),
        ({"keep_ratio": 0.5}, {"keep_ratio": 0.5, "reducer": "fuse"}, "ragged"),
        ({"keep_ratio": 0.8}, {"keep_mass": 0.75}, "dense"),
        ({"keep_ratio": 0.75}, {"keep_mass": 0.75}, "ragged"),
        ({"keep_ratio": 0.5}, {"keep_mass": 0.75}, "ragged"),
        ({"keep_ratio": 0.5}, {"keep_ratio": 0.5, "margin": 0.25}, "dense"),
    ],
    ids=str,
)
async def test_a_batch_is_dense_where_all_its_images_have_one_length(
    address: str, one: dict[str, object], other: dict[str, object], form: str
) -> None:
    """What counts is the tokens after each stage of the first run, however they were asked for."""
    backend = FakeBackend(ONE_STREAM, unsure={3})
    with running_engine(backend, address), Peer(address) as peer:
        async with ready_client(address) as client:
            asked = await ask_behind(client, backend, question(1), question(2, **one), question(3, **other))
            both = weight(submit(2, **one)) + weight(submit(3, **other))
            await until(lambda: peer.status().waiting_tokens == both, "two images to wait")
            before = {name: metric("trimvit_batches_total", form=name) for name in ("dense", "ragged")}
            backend.may_answer.set()
            await asyncio.gather(*asked)
        peer.status()  # the loop has come round: all of the batch is counted
    counted = {name: metric("trimvit_batches_total", form=name) - before[name] for name in before}
    alone = {"dense": 1, "ragged": 0}  # the image that the others waited behind
    assert counted == {name: alone[name] + (name == form) for name in alone}
