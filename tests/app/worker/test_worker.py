"""The worker's loop: real connections to a dispatcher, with a backend that waits and fails on purpose."""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from app.dispatch.policy.agreement import Agreement
from app.errors import InternalFault
from app.messages.capacity import Limits
from app.messages.image import Prediction
from app.messages.to_dispatcher import Submit
from app.messages.to_front_end import Answer, Models, Refuse
from app.worker.backend import Job
from app.worker.parts import BackendBroken
from models.schedule import UNPRUNED
from tests.app.dispatch.rig import (
    ONE_AT_A_TIME,
    ONE_STREAM,
    FakeBackend,
    FrontEndPeer,
    House,
    ask,
    ask_behind,
    asking,
    begun,
    connected,
    question,
    ready_client,
    record,
    running_dispatcher,
    running_worker,
    served,
    until,
    wait_for,
)
from tests.app.fakes import LARGER, LOGITS, MODEL
from tests.app.worker.cuda_errors import cuda_error

pytestmark = pytest.mark.anyio


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


# Loading and stopping.


def test_a_worker_that_loads_is_not_there_yet(house: House) -> None:
    """It says what it is once it can compute."""
    backend = FakeBackend()
    backend.may_load.clear()
    with running_dispatcher(house) as running, running_worker(house, backend), FrontEndPeer(house) as peer:
        peer.take_next()
        assert "0 workers" in repr(running.dispatcher)
        backend.may_load.set()
        peer.wait_until_ready()
        assert peer.models is not None
        assert peer.models.infos[0] == MODEL


@pytest.mark.parametrize("error", [OSError("no such file"), SystemExit(3)], ids=repr)
def test_a_model_that_cannot_be_loaded_ends_the_worker(house: House, error: BaseException) -> None:
    """What load raises comes out of run: a worker without a model must not look alive."""
    with (
        pytest.raises(type(error)) as caught,
        running_worker(house, FakeBackend(load_error=error)) as (_, run),
    ):
        assert run.ended()
    assert caught.value is error


def test_stop_while_loading_ends_the_worker(house: House) -> None:
    """One that is told to stop does not finish loading first."""
    backend = FakeBackend()
    backend.may_load.clear()
    with running_worker(house, backend) as (worker, running):
        worker.stop()
        assert running.ended()


def test_stop_finishes_the_batch(house: House) -> None:
    """What is being computed when the worker is told to stop is answered before it ends."""
    backend = FakeBackend()
    backend.may_answer.clear()
    with (
        running_dispatcher(house),
        running_worker(house, backend) as (worker, running),
        FrontEndPeer(house) as peer,
    ):
        peer.wait_until_ready()
        peer.submit(1)
        assert backend.next_batch() == [1]
        worker.stop()
        assert "1 batches" in repr(worker)
        backend.may_answer.set()
        assert peer.hear().id == 1
        assert running.ended()


def test_a_worker_waits_for_its_dispatcher(house: House) -> None:
    """Whichever is there first."""
    backend = FakeBackend()
    with running_worker(house, backend):
        wait_for(lambda: backend.loads == 1, "the model")
        with running_dispatcher(house), FrontEndPeer(house) as peer:
            peer.wait_until_ready()


_DYING = """
import sys, threading
from pathlib import Path
from app.worker.worker import WorkerLoop
from tests.app.dispatch.rig import FakeBackend, FrontEndPeer, House, running_dispatcher

class Dying(FakeBackend):
    def classify(self, jobs, threads):
        raise SystemExit("as a C extension may")

house = House(Path(sys.argv[1]))
def ask():
    with running_dispatcher(house), FrontEndPeer(house) as peer:
        peer.wait_until_ready()
        peer.submit()
        peer.hear()
threading.Thread(target=ask, daemon=True).start()
WorkerLoop("worker-0", house.path, [Dying()], house.reader).run()
"""


def test_a_compute_thread_that_dies_takes_the_process_with_it(house: House) -> None:
    """A thread that is gone cannot compute, so the process ends and health does not stay green."""
    command = [sys.executable, "-c", _DYING, str(house.path.parent)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "as a C extension may" in ended.stderr


# Answers.


async def test_an_image_is_answered_with_what_the_backend_found(house: House) -> None:
    """The answer's fields are the backend's result; queue and compute times are there."""
    backend = FakeBackend()
    with served(house, backend):
        async with ready_client(house) as client:
            asked = question(
                4, keep_ratio=0.5, criterion="mad", reducer="fuse", top_k=2, seed=19, kept_patches=True
            )
            answer = await ask(client, asked)
    found = answer.prediction
    assert found.classes == [4, 5]
    assert found.scores == [0.5, 0.25]
    assert found.kept_counts == (8, 4)
    assert (found.keep_ratio, found.runs) == (0.5, 1)
    assert answer.queue_s >= 0
    assert answer.compute_s >= 0
    assert [stage.tolist() for stage in found.kept_patches] == [list(range(7, 15)), list(range(11, 15))]
    ((computed, _),) = backend.seen
    assert computed.pruning == asked.ask.pruning
    assert (computed.top_k, computed.kept_patches, computed.margin, computed.logits) == (2, True, None, False)


async def test_an_image_that_a_cascade_is_unsure_of_says_so(house: House) -> None:
    """Number of runs, ratio and compute of both come back."""
    backend = FakeBackend(unsure={5})
    with served(house, backend):
        async with ready_client(house) as client:
            sure, unsure = [
                (await ask(client, question(number, keep_ratio=0.5, margin=0.25))).prediction
                for number in (4, 5)
            ]
    assert (sure.runs, sure.keep_ratio, sure.kept_counts) == (1, 0.5, (8, 4))
    assert (unsure.runs, unsure.keep_ratio, unsure.kept_counts) == (2, 1.0, (15, 15))
    assert sure.compute < 1 < unsure.compute


@pytest.mark.parametrize("kept", [False, True])
async def test_logits_and_kept_patches_are_sent_to_those_who_ask(house: House, kept: bool) -> None:
    """Float32, of every class."""
    with served(house, FakeBackend()):
        async with ready_client(house) as client:
            asked = await ask(client, question(keep_ratio=0.5, kept_patches=kept, logits=True))
            plain = await ask(client, question(keep_ratio=0.5, kept_patches=kept))
    logits = asked.prediction.all_logits
    assert logits is not None
    assert (logits.dtype, logits.tolist()) == (np.float32, list(LOGITS))
    assert plain.prediction.all_logits is None
    assert asked.prediction.kept == plain.prediction.kept
    assert len(asked.prediction.kept_patches) == (2 if kept else 0)


def test_streams_compute_at_the_same_time(house: House) -> None:
    """Two batches meet in the backend, each on its own threads; a lone one has all of them."""
    backend = FakeBackend(Limits(batch_tokens=1, threads=3, streams=2))
    with served(house, backend), FrontEndPeer(house) as peer:
        peer.wait_until_ready()
        backend.may_answer.clear()
        peer.submit(1)
        assert backend.next_batch() == [1]
        backend.together = threading.Barrier(2)
        for number in (2, 3):
            peer.submit(number)
        backend.may_answer.set()
        assert all(isinstance(peer.hear(), Answer) for _ in range(3)), "the streams did not meet"
    assert sorted(backend.threads) == [1, 1, 3]


def test_the_pixels_of_a_slot_are_read_where_they_are(house: House) -> None:
    """The backend is given the shared memory itself: it alone copies, once, to where its device takes it."""
    owned: list[bool] = []

    class Looks(FakeBackend):
        def classify(self, jobs: Sequence[Job], threads: int) -> Sequence[Prediction]:
            owned.extend(job.pixels.flags.owndata for job in jobs)
            for job in jobs:
                base = job.pixels
                while isinstance(base, np.ndarray):
                    base = base.base  # type: ignore[assignment]
                assert type(base).__name__ in ("mmap", "memoryview")
            return super().classify(jobs, threads)

    with served(house, Looks()), FrontEndPeer(house) as peer:
        peer.wait_until_ready()
        peer.submit(7)
        assert isinstance(peer.hear(), Answer)
    assert owned == [False]


# Faults.


@pytest.mark.parametrize(
    ("fault", "words", "logged"),
    [
        ({"poisoned": {2}}, "computing this image failed", "computing it by itself failed"),
        ({"speechless": {2}}, "not finite numbers", "its scores are not finite numbers"),
    ],
    ids=["raises", "NaN"],
)
async def test_only_the_image_at_fault_is_refused(
    house: House, fault: dict[str, Any], words: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The images of its batch are answered; it is told why, the log has it once, and it is counted."""
    import asyncio

    backend = FakeBackend(**fault)
    reason = "worker-fault" if "poisoned" in fault else "no-number"
    before = metric("trimvit_images_failed_total", reason=reason)
    with served(house, backend) as dispatcher:
        async with ready_client(house) as client:
            asked = await ask_behind(client, backend, *(question(number) for number in (1, 2, 3, 4, 5)))
            await until(lambda: " 5 images" in repr(dispatcher), "four images to wait")
            backend.may_answer.set()
            first, second, *others = await asyncio.gather(*asked, return_exceptions=True)
            assert isinstance(second, InternalFault)
            assert words in second.detail
            for number, other in zip((1, 3, 4, 5), (first, *others), strict=True):
                assert not isinstance(other, BaseException)
                assert other.prediction.classes[0] == number
            assert (await ask(client, question(6))).prediction.classes[0] == 6
    assert caplog.text.count(logged) == 1
    assert ("RuntimeError: poisoned" in caplog.text) == ("poisoned" in fault), "the traceback is in the log"
    assert metric("trimvit_images_failed_total", reason=reason) == before + 1


@pytest.mark.parametrize(
    "fault",
    [{"broken": True}, {"miscounts": 1}, {"speechless": set(range(11))}],
    ids=["raises", "miscounts", "NaN"],
)
def test_a_backend_that_can_compute_nothing_ends_the_worker(house: House, fault: dict[str, Any]) -> None:
    """A broken device must not answer 500s under green health: its process ends, to be replaced."""

    def ask() -> None:
        with (
            running_dispatcher(house) as dispatcher,
            running_worker(house, FakeBackend(**fault)) as (_, running),
        ):
            with FrontEndPeer(house) as peer:
                peer.wait_until_ready()
                peer.submit(1)
                assert running.ended()
            wait_for(lambda: dispatcher.dispatcher.idle, "the image to be dropped")

    with pytest.raises(BackendBroken, match="blank image"):
        ask()


async def test_what_a_broken_worker_had_is_answered_by_its_successor(house: House) -> None:
    """Nobody pays for a broken device: its batch is computed again, one image at a time."""
    import asyncio

    with running_dispatcher(house):
        async with connected(house) as client:
            asked = [asking(client, question(number)) for number in (1, 2, 3)]
            broken = FakeBackend(broken=True)

            async def break_down() -> None:
                with running_worker(house, broken) as (_, running):
                    assert await asyncio.to_thread(running.ended)

            with pytest.raises(BackendBroken):
                await break_down()
            with running_worker(house, FakeBackend()):
                answers = await asyncio.gather(*asked)
    assert [answer.prediction.classes[0] for answer in answers] == [1, 2, 3]
    assert house.taken == 0


async def test_a_lost_gpu_ends_the_worker_and_its_images_go_to_the_next(house: House) -> None:
    """CUDA's error stays with the process: its batch is tried once, and its successor answers."""
    import asyncio

    with running_dispatcher(house):
        async with connected(house) as client:
            asked = [asking(client, question(number)) for number in (1, 2, 3)]
            lost = FakeBackend(raises=cuda_error(700, "an illegal memory access was encountered"))

            async def lose() -> None:
                with running_worker(house, lost) as (_, running):
                    assert await asyncio.to_thread(running.ended)

            with pytest.raises(BackendBroken, match="the device is lost"):
                await lose()
            with running_worker(house, FakeBackend()):
                answers = await asyncio.gather(*asked)
    assert [answer.prediction.classes[0] for answer in answers] == [1, 2, 3]
    assert len(lost.threads) == 1


def test_a_worker_splits_what_does_not_fit_and_smaller_batches_follow(house: House) -> None:
    """All are answered, and the next batches are no larger than what fitted."""
    backend = FakeBackend(ONE_STREAM, most_at_once=2)
    with served(house, backend) as dispatcher, FrontEndPeer(house) as peer:
        peer.wait_until_ready()

        def behind(numbers: range) -> None:
            backend.may_answer.clear()
            peer.submit(numbers[0])
            assert backend.next_batch() == [numbers[0]]
            for number in numbers[1:]:
                peer.submit(number)
            wait_for(lambda: f" {len(numbers)} images" in repr(dispatcher), "all to come")
            backend.may_answer.set()
            assert {peer.hear().id for _ in numbers} == set(numbers)

        behind(range(1, 10))
        parts = [backend.next_batch() for _ in range(7)]
        assert parts == [
            list(range(2, 10)), [2, 3, 4, 5], [2, 3], [4, 5], [6, 7, 8, 9], [6, 7], [8, 9],
        ]  # fmt: skip
        behind(range(11, 16))
        assert [backend.next_batch() for _ in range(2)] == [[12, 13], [14, 15]]


def test_an_image_that_does_not_fit_alone_is_refused_and_the_worker_lives(house: House) -> None:
    """It is told to come back: the memory may be somebody else's."""
    backend = FakeBackend(most_at_once=0)
    with served(house, backend), FrontEndPeer(house) as peer:
        peer.wait_until_ready()
        peer.submit(1)
        assert peer.hear() == Refuse(1, "out-of-memory", 1.0)
        backend.most_at_once = 9
        peer.submit(2)
        assert isinstance(peer.hear(), Answer)


# Agreement.


def checks(outcome: str) -> float:
    return metric("trimvit_agreement_checks_total", ratio_bucket="0.4-0.5", outcome=outcome)


async def test_an_answered_image_is_run_again_unpruned(house: House) -> None:
    """With the pixels that it had, for its first label only; it counts as a check, and as nothing else."""
    agreement = Agreement(1.0, lambda: 0.0)
    before = {outcome: checks(outcome) for outcome in ("agreed", "disagreed")}
    images = metric("trimvit_batch_images_sum")
    backend = FakeBackend(ONE_STREAM, swayed={2})
    with served(house, backend, agreement=agreement):
        async with ready_client(house) as client:
            for number in (1, 2, 3):
                found = await ask(client, question(number, keep_ratio=0.5, kept_patches=True))
                assert found.prediction.classes[0] == number
                await begun(backend)
                assert await begun(backend) == [number]
            await ask(client, question(4))
            await until(lambda: checks("agreed") == before["agreed"] + 2, "two to agree")
            await until(lambda: checks("disagreed") == before["disagreed"] + 1, "one not to")
            await until(lambda: metric("trimvit_batch_images_sum") == images + 4, "four to be counted")
    assert backend.numbers == [1, 1, 2, 2, 3, 3, 4]
    again = [backend.seen[place][0] for place in (1, 3, 5)]
    assert {(one.pruning, one.top_k, one.kept_patches, one.margin) for one in again} == {
        (UNPRUNED, 1, False, None)
    }
    assert backend.threads[1] == 1


async def test_a_check_that_fails_counts_for_nothing(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """The log has it, and the worker goes on."""

    class FailsUnpruned(FakeBackend):
        def classify(self, jobs: Sequence[Job], threads: int) -> Sequence[Prediction]:
            if jobs[0].ask.pruning == UNPRUNED:
                raise RuntimeError("out of memory")
            return super().classify(jobs, threads)

    before = checks("agreed"), checks("disagreed")
    with served(house, FailsUnpruned(ONE_STREAM), agreement=Agreement(1.0, lambda: 0.0)):
        async with ready_client(house) as client:
            for number in (1, 2):
                await ask(client, question(number, keep_ratio=0.5))
                await until(
                    lambda number=number: (
                        caplog.text.count("without pruning, to measure the agreement, failed") == number
                    ),
                    "the failure",
                )
    assert (checks("agreed"), checks("disagreed")) == before


async def test_a_check_that_loses_the_gpu_ends_the_worker(house: House) -> None:
    """No batch would be computed any more, whoever asked for what failed."""
    import asyncio

    class Loses(FakeBackend):
        def classify(self, jobs: Sequence[Job], threads: int) -> Sequence[Prediction]:
            if jobs[0].ask.pruning == UNPRUNED:
                raise cuda_error(700, "an illegal memory access was encountered")
            return super().classify(jobs, threads)

    async def lose() -> None:
        with running_worker(house, Loses(ONE_STREAM)) as (_, running):
            async with ready_client(house) as client:
                await ask(client, question(1, keep_ratio=0.5))
            assert await asyncio.to_thread(running.ended)

    watched = running_dispatcher(house, agreement=Agreement(1.0, lambda: 0.0))
    with watched, pytest.raises(BackendBroken, match="the device is lost"):
        await lose()


# Processes that die.


async def test_a_worker_connects_to_the_dispatchers_successor_without_loading_again(house: House) -> None:
    """What it computed for the one that is gone goes to nobody."""
    backend = FakeBackend(ONE_AT_A_TIME)
    with running_worker(house, backend) as (worker, _):
        for number in (1, 2, 3):
            with running_dispatcher(house), FrontEndPeer(house) as peer:
                peer.wait_until_ready()
                backend.may_answer.clear()
                peer.submit(number)
                assert backend.next_batch() == [number]
            backend.may_answer.set()
        wait_for(lambda: "0 batches" in repr(worker), "the last batch")
    assert backend.loads == 1


def test_device_memory_is_told(house: House) -> None:
    """From the start, as the backend says."""
    with served(house, FakeBackend()), FrontEndPeer(house) as peer:
        peer.wait_until_ready()
        assert metric("trimvit_device_memory_bytes", worker="worker-0") == 1234


def test_a_workers_files_stay_closed_to_others(house: House) -> None:
    """The shared memory is passed on where it is asked for, and not to every process that is started."""
    assert not os.get_inheritable(house.memory)


def test_each_model_has_a_backend_of_its_own(house: House) -> None:
    """It is given the images of its model, at its size; checks of what was held go to it, too."""
    toy, larger = FakeBackend(), FakeBackend(model=LARGER)
    agreement = Agreement(1.0)
    with (
        running_dispatcher(house, agreement=agreement),
        running_worker(house, toy, "worker-0", larger),
        FrontEndPeer(house) as peer,
    ):
        peer.wait_until_ready()
        assert peer.models == Models([MODEL, LARGER])
        peer.submit(1)
        slot = peer.slots.take()
        assert slot is not None
        peer.slots.write(slot, np.full((*LARGER.input.size, 3), 2, np.uint8))
        asked = {"size": LARGER.pixel_bytes, "model": LARGER.name, "keep_ratio": 0.5}
        peer.say(Submit([record(2, slot, **asked)]))
        answers = [peer.hear(), peer.hear()]
        assert sorted(one.id for one in answers if isinstance(one, Answer)) == [1, 2]
        wait_for(lambda: len(larger.numbers) == 2, "the check")
    assert (toy.numbers, larger.numbers) == ([1], [2, 2])
