"""The front end's client: against a real dispatcher and worker, and against a dispatcher that dies on cue."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from app.dispatch.client import DispatchClient, Expected
from app.dispatch.policy.batches import QueueLimits
from app.errors import (
    DeadlinePassed,
    InsufficientMemory,
    InternalFault,
    ModelLoadTooSlow,
    ModelNotLoadable,
    NotFound,
    NotReady,
    OutOfMemory,
    Overloaded,
    Problem,
    QueueFull,
    RepositoryConflict,
    WorkerLost,
)
from app.messages.image import Ask
from app.messages.repository import ChangeFault, ModelEntry
from app.messages.slot_map import SlotMap
from app.messages.slots import SlotReader, SlotWriter
from app.messages.to_dispatcher import Cancel, FrontEnd, LoadModel, ModelLeft, Record, Submit, UnloadModel
from app.messages.to_front_end import (
    Load,
    ModelChanged,
    Models,
    Outcomes,
    RefusalReason,
    Refuse,
    Repository,
    Workers,
    WorkerState,
)
from app.processes.reports import WorkerReport, write_reports
from models.schedule import Pruning
from tests.app.dispatch.rig import (
    HEIGHT,
    ONE_AT_A_TIME,
    PATIENCE_S,
    WIDTH,
    FakeBackend,
    House,
    ScriptedDispatcher,
    answer_to,
    ask,
    ask_behind,
    asking,
    begun,
    connected,
    noise,
    question,
    ready_client,
    running_dispatcher,
    running_worker,
    scripted_dispatcher,
    served,
    until,
)
from tests.app.fakes import LARGER, MODEL, Asked

pytestmark = pytest.mark.anyio

ONE_READY = Workers([WorkerState("worker-0", "cpu:0", ready=True, images=0)])


@asynccontextmanager
async def scripted(
    house: House, **options: object
) -> AsyncIterator[tuple[DispatchClient, ScriptedDispatcher]]:
    """A client, and a dispatcher that has told it that a worker is ready."""
    async with scripted_dispatcher(house) as made, connected(house, **options) as client:
        dispatcher = await introduced(made)
        await until(lambda: client.model is not None, "a worker to be ready")
        yield client, dispatcher


async def introduced(made: "asyncio.Queue[ScriptedDispatcher]") -> ScriptedDispatcher:
    """The next dispatcher that the client connects to, which says that a worker is ready."""
    async with asyncio.timeout(PATIENCE_S):
        dispatcher = await made.get()
    dispatcher.say(Models([MODEL]))
    dispatcher.say(ONE_READY)
    return dispatcher


# Readiness.


async def test_without_a_dispatcher_nothing_is_ready(house: House) -> None:
    """Where nobody answers in time, images are refused with a time to come back, and their slots are free."""
    async with connected(house, patience_s=0.05) as client:
        assert client.model is None
        assert client.workers == [{"ready": False, "device": None, "images_pending": 0}]
        assert repr(client) == "<DispatchClient 0 of 0 workers ready, 0 images>"
        with pytest.raises(NotReady) as caught:
            await ask(client, question())
        assert caught.value.retry_after_s is not None
        with pytest.raises(NotReady):
            await client.wait_until_ready(PATIENCE_S)
    assert house.taken == 0


async def test_what_the_workers_served_is_known_while_they_are_away(house: House) -> None:
    """The last model stays known when its worker has gone; before there was one, none is."""
    async with connected(house) as client:
        assert client.last_model is None
        with served(house, FakeBackend()):
            await client.wait_until_ready(PATIENCE_S)
        await until(lambda: client.model is None, "the worker to be missed")
        assert client.last_model == MODEL


async def test_what_comes_before_a_worker_waits_for_it(house: House) -> None:
    """Images and callers that come while no worker is ready are served as soon as one is."""
    async with connected(house) as client:
        model = asyncio.create_task(client.wait_until_ready(PATIENCE_S))
        asked = [asking(client, question(number)) for number in (2, 3)]
        await until(lambda: "2 images" in repr(client), "the images to wait")
        with served(house, FakeBackend()):
            assert await model == MODEL
            answers = await asyncio.gather(*asked)
    assert [answer.prediction.classes[0] for answer in answers] == [2, 3]


async def test_no_more_callers_wait_than_may(house: House) -> None:
    """What is too much is told at once to come back later."""
    async with connected(house, most_waiting=2) as client:
        waiting = [asyncio.create_task(client.wait_until_ready(PATIENCE_S)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="2 requests are already waiting"):
            await client.wait_until_ready(PATIENCE_S)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_waiting_ends_where_the_supervisor_expects_no_worker(house: House, tmp_path: Path) -> None:
    """Workers that have failed to start again and again are not waited for; the answer says why."""
    reports = tmp_path / "workers.json"
    write_reports(reports, [WorkerReport("worker-0")])
    with running_dispatcher(house):
        async with connected(house, reports=reports) as client:
            asked = asking(client, question())
            waiting = asyncio.create_task(client.wait_until_ready(PATIENCE_S))
            await until(lambda: "1 images" in repr(client), "the image to wait")
            assert client.trouble is None
            write_reports(
                reports,
                [WorkerReport("worker-0", 5, "OSError: no disk", time.monotonic() + 60, given_up=True)],
            )
            words = "worker-0 failed to start 5 times in a row, the last time with: OSError: no disk"
            for task in (asked, waiting, asking(client, question())):
                with pytest.raises(NotReady, match=words) as caught:
                    await task
                assert caught.value.retry_after_s is not None
                assert 30 < caught.value.retry_after_s <= 60
            assert client.trouble is not None
            with running_worker(house):
                await until(lambda: client.model is not None, "the worker to be ready")
                assert client.trouble is None
                await ask(client, question())
    assert house.taken == 0


async def test_a_worker_that_comes_up_later_is_found(house: House) -> None:
    """A client started before its worker becomes ready with it, and knows its model."""
    with running_dispatcher(house):
        async with connected(house, workers=2) as client:
            with running_worker(house):
                await until(lambda: client.model is not None, "the worker to be ready")
                assert client.model == MODEL
                assert client.workers == [
                    {"ready": True, "device": "cpu:0", "images_pending": 0},
                    {"ready": False, "device": None, "images_pending": 0},
                ]


async def test_a_dispatcher_that_says_nothing_is_not_ready(house: House) -> None:
    """Stopped, or starved: it is not called ready because it once was."""
    async with scripted(house) as (client, dispatcher):
        assert client.workers[0]["ready"]
        await until(lambda: client.model is None, "the silence to be noticed")
        assert not client.workers[0]["ready"]
        dispatcher.say(ONE_READY)
        await until(lambda: client.model is not None, "it to be ready again")


# Answers.


async def test_a_question_and_its_answer_travel_whole(house: House) -> None:
    """Everything asked reaches the dispatcher, the pixels their slot; the answer comes with its arrays."""
    async with scripted(house, index=2) as (client, dispatcher):
        noisy = np.random.default_rng(3).integers(0, 256, (3, WIDTH, HEIGHT), np.uint8)
        asked = asking(
            client,
            Asked(
                pixels=noisy.transpose(2, 1, 0),
                ask=Ask(Pruning(0.5, "iqr", "fuse", seed=23), 4, 0.25, kept_patches=True),
                deadline_s=9.0,
                caller="somebody",
                priority="high",
                own_deadline=True,
                model=MODEL.name,
            ),
        )
        record = await dispatcher.next_record()
        assert record == Record(
            id=1,
            slot=record.slot,
            size=MODEL.pixel_bytes,
            ask=Ask(Pruning(0.5, "iqr", "fuse", seed=23), 4, 0.25, kept_patches=True),
            deadline_s=9.0,
            own_deadline=True,
            caller="somebody",
            priority="high",
            model=MODEL.name,
        )
        assert dispatcher.heard[0] == FrontEnd(2)
        pixels = house.reader(MODEL.pixel_bytes)(record.slot)
        assert np.array_equal(pixels.reshape(HEIGHT, WIDTH, 3), noisy.transpose(2, 1, 0))
        answer = answer_to(record, kept_counts=(2, 1), kept=(b"\x01\x02\x03\x04", b"\x05\x00"))
        dispatcher.say(Outcomes([answer], []))
        assert await asked == answer
    kept = answer.prediction.kept_patches
    assert [stage.tolist() for stage in kept] == [[513, 1027], [5]]
    assert [stage.dtype for stage in kept] == [np.uint16, np.uint16]
    assert house.taken == 0


async def test_what_comes_in_one_turn_of_the_loop_goes_in_one_message(house: House) -> None:
    """Records and withdrawals."""
    async with scripted(house) as (client, dispatcher):
        asked = [asking(client, question(number)) for number in range(5)]
        for _ in asked:
            await dispatcher.next_record()
        for task in asked:
            task.cancel()
        await until(lambda: any(isinstance(message, Cancel) for message in dispatcher.heard), "the end")
    submits = [message for message in dispatcher.heard if isinstance(message, Submit)]
    assert [len(submit.records) for submit in submits] == [5]
    assert dispatcher.heard[-1] == Cancel([1, 2, 3, 4, 5])
    assert house.taken == 0


async def test_answers_in_any_order_reach_the_right_questions(house: House) -> None:
    """Of many images in flight, each gets the answer with its number."""
    async with scripted(house) as (client, dispatcher):
        asked = [asking(client, question(number)) for number in range(5)]
        records = [await dispatcher.next_record() for _ in asked]
        for record in reversed(records):
            dispatcher.answer(record, classes=[record.id])
        answers = await asyncio.gather(*asked)
    assert [answer.prediction.classes for answer in answers] == [[1], [2], [3], [4], [5]]


async def test_nonsense_and_strays_are_passed_over(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """What is no message, or is about images that nobody asks about, disturbs nobody."""
    async with scripted(house) as (client, dispatcher):
        asked = asking(client, question())
        record = await dispatcher.next_record()
        for nonsense in (b"\xc1", b"", noise({"type": "Submit"})):
            dispatcher.send(nonsense)
        stray = answer_to(record, id=999)
        dispatcher.say(Outcomes([stray], [Refuse(999, "queue-full", 1.0)]))
        dispatcher.answer(record)
        dispatcher.answer(record, classes=[8])
        dispatcher.say(Outcomes([], [Refuse(record.id, "queue-full", 1.0)]))
        assert (await asked).prediction.classes == [7]
        assert client.model == MODEL
    assert caplog.text.count("invalid message from the dispatcher") == 1, "the same again is not told"


async def test_an_answer_that_cannot_be_used_fails_its_image_only(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """Kept patches that nobody asked for, a label that the model has not, scores that are no numbers."""
    async with scripted(house) as (client, dispatcher):
        for changes in ({"kept": (b"odd",)}, {"classes": [11]}, {"scores": [float("nan")]}):
            asked, other = asking(client, question(1)), asking(client, question(2))
            dispatcher.answer(await dispatcher.next_record(), **changes)
            dispatcher.answer(await dispatcher.next_record())
            with pytest.raises(InternalFault, match="was invalid"):
                await asked
            assert (await other).prediction.classes == [7]
    assert caplog.text.count("invalid answer from a worker") == 1


@pytest.mark.parametrize(
    ("reason", "problem", "retry_after_s"),
    [
        ("queue-full", QueueFull, 2.5),
        ("deadline-passed", DeadlinePassed, None),
        ("out-of-memory", OutOfMemory, 2.5),
        ("worker-fault", InternalFault, None),
        ("no-number", InternalFault, None),
        ("worker-lost", WorkerLost, None),
        ("not-ready", NotReady, 1.0),
    ],
)
async def test_each_refusal_is_its_problem(
    house: House, reason: RefusalReason, problem: type[Problem], retry_after_s: float | None
) -> None:
    """What the dispatcher refuses is raised as the problem that says why, and when to come back."""
    async with scripted(house) as (client, dispatcher):
        asked = asking(client, question())
        record = await dispatcher.next_record()
        dispatcher.say(Outcomes([], [Refuse(record.id, reason, 2.5)]))
        with pytest.raises(problem) as caught:
            await asked
        assert caught.value.retry_after_s == retry_after_s
        assert "0 images" in repr(client)
        assert not any(isinstance(message, Cancel) for message in dispatcher.heard)
    assert house.taken == 0


async def test_a_full_queue_refuses(house: House) -> None:
    """With a real dispatcher, the image too many raises QueueFull and the others are answered."""
    backend = FakeBackend(ONE_AT_A_TIME)
    with served(house, backend, limits=QueueLimits(1)):
        async with ready_client(house) as client:
            asked = await ask_behind(client, backend, question(1), question(2), question(3))
            with pytest.raises(QueueFull):
                await asked[2]
            backend.may_answer.set()
            first, second = await asyncio.gather(*asked[:2])
    assert (first.prediction.classes[0], second.prediction.classes[0]) == (1, 2)


async def test_without_a_free_slot_an_image_is_refused(house: House) -> None:
    """At once, and nobody else loses theirs."""
    few = SlotWriter(house.memory, SlotMap(1, 2), 0)
    async with scripted_dispatcher(house) as made:
        client = DispatchClient(house.path, few)
        await client.start()
        dispatcher = await introduced(made)
        asked = [asking(client, question(number)) for number in (1, 2)]
        records = [await dispatcher.next_record() for _ in asked]
        with pytest.raises(Overloaded) as caught:
            await ask(client, question(3))
        assert caught.value.retry_after_s is not None
        for record in records:
            dispatcher.answer(record)
        await asyncio.gather(*asked)
        await client.close()
    assert few.taken == 0


async def test_the_load_is_heard(house: House) -> None:
    """An image that the dispatcher is known to refuse need not be decoded; without a worker it decides."""
    async with scripted(house) as (client, dispatcher):
        expected = Expected(1.0, 1.0, 0.5, "somebody", "normal")
        assert client.refusal(expected) is None
        dispatcher.say(Load({"normal": 3.0, "high": 0.0, "batch": 9.0}, (), [0.0], seen=0))
        await until(lambda: isinstance(client.refusal(expected), QueueFull), "the load to be heard")
        with pytest.raises(QueueFull), client.expecting(expected):
            pass
        dispatcher.say(Workers([msgspec.structs.replace(ONE_READY.workers[0], ready=False)]))
        await until(lambda: client.model is None, "the loss to be heard")
        assert client.refusal(expected) is None


async def test_work_is_measured_in_unpruned_images(house: House) -> None:
    """What waits or is computed, as autoscaling counts it."""
    async with scripted(house) as (client, dispatcher):
        asked = [asking(client, question(1)), asking(client, question(2, keep_ratio=0.5))]
        records = [await dispatcher.next_record() for _ in asked]
        assert 1 < client.work < 2
        for record in records:
            dispatcher.answer(record)
        await asyncio.gather(*asked)
        assert client.work == 0


# Deadlines and cancelling.


async def test_a_passed_deadline_is_answered_and_the_image_never_computed(house: House) -> None:
    """The client answers on time even where the worker is busy, and the image leaves the queue."""
    backend = FakeBackend(ONE_AT_A_TIME)
    with served(house, backend) as dispatcher:
        async with ready_client(house) as client:
            asked = await ask_behind(client, backend, question(1), question(2, deadline_s=0.05))
            with pytest.raises(DeadlinePassed):
                await asked[1]
            await until(lambda: " 1 images" in repr(dispatcher), "the image to leave the queue")
            backend.may_answer.set()
            await asked[0]
            await ask(client, question(3))
    assert backend.numbers == [1, 3]
    assert house.taken == 0


async def test_a_deadline_does_not_need_the_dispatcher(house: House) -> None:
    """One that never says a word does not keep an answer back; it is told that nobody waits."""
    async with scripted(house) as (client, dispatcher):
        asked = asking(client, question(deadline_s=0.05))
        record = await dispatcher.next_record()
        with pytest.raises(DeadlinePassed, match="the image was not computed within the 50 ms"):
            await asked
        await until(lambda: Cancel([record.id]) in dispatcher.heard, "the cancel")
        assert "0 images" in repr(client)
    assert house.taken == 0


async def test_a_cancelled_question_is_withdrawn_and_never_computed(house: House) -> None:
    """Where the asker goes, the image leaves the queue and its slot."""
    backend = FakeBackend(ONE_AT_A_TIME)
    with served(house, backend) as dispatcher:
        async with ready_client(house) as client:
            asked = await ask_behind(client, backend, question(1), question(2), question(3))
            await until(lambda: " 3 images" in repr(dispatcher), "two images to wait")
            asked[1].cancel()
            await until(lambda: " 2 images" in repr(dispatcher), "one of them to leave")
            assert house.taken == 2
            backend.may_answer.set()
            await asyncio.gather(asked[0], asked[2])
            assert asked[1].cancelled()
    assert backend.numbers == [1, 3]


async def test_closing_fails_what_is_pending(house: House) -> None:
    """No asker hangs when the front end shuts down."""
    async with scripted_dispatcher(house) as made:
        async with connected(house) as client:
            dispatcher = await introduced(made)
            asked = asking(client, question())
            await dispatcher.next_record()
        with pytest.raises(NotReady, match="shutting down") as caught:
            await asked
        assert caught.value.retry_after_s is not None


# Dispatchers that die.


async def test_open_images_are_sent_to_the_dispatchers_successor(house: House) -> None:
    """Once each, with the same slot and the time that is left; their pixels are still there. What had its
    answer is not sent again."""
    async with connected(house) as client:
        async with scripted_dispatcher(house) as made:
            dispatcher = await introduced(made)
            asked = [asking(client, question(number, keep_ratio=0.5)) for number in (4, 6, 9)]
            first = [await dispatcher.next_record() for _ in asked]
            dispatcher.answer(first[1])
            await asked[1]
        await until(lambda: client.model is None, "the loss to be noticed")
        async with scripted_dispatcher(house) as made:
            successor = await introduced(made)
            again = [await successor.next_record() for _ in range(2)]
            for before, after, number in zip((first[0], first[2]), again, (4, 9), strict=True):
                assert after.deadline_s < before.deadline_s
                assert (before.again, after.again) == (False, True)
                assert msgspec.structs.replace(after, deadline_s=before.deadline_s, again=False) == before
                assert house.reader(MODEL.pixel_bytes)(after.slot)[0] == number
                successor.answer(after, classes=[number])
            answers = await asyncio.gather(asked[0], asked[2])
            assert successor.heard[0] == FrontEnd(0)
            assert successor.records.empty()
    assert [answer.prediction.classes for answer in answers] == [[4], [9]]
    assert house.taken == 0


async def test_a_dispatcher_that_dies_costs_no_answer_and_no_load_of_the_model(house: House) -> None:
    """With a real worker, which goes on with the successor: what it was computing is computed again."""
    backend = FakeBackend(ONE_AT_A_TIME)
    with running_worker(house, backend):
        async with connected(house) as client:
            with running_dispatcher(house) as first:
                await client.wait_until_ready(PATIENCE_S)
                asked = await ask_behind(client, backend, *(question(number) for number in (1, 2, 3)))
                for peer in list(first.server._peers.values()):  # as if it were killed
                    peer.socket.shutdown(socket.SHUT_RDWR)
            await until(lambda: client.model is None, "the loss to be noticed")
            backend.may_answer.set()
            with running_dispatcher(house):
                answers = await asyncio.gather(*asked)
    assert [answer.prediction.classes[0] for answer in answers] == [1, 2, 3]
    assert backend.loads == 1
    assert house.taken == 0


# Workers that die.


async def test_what_a_worker_took_with_it_goes_to_another(house: House) -> None:
    """Where several serve, nobody waits for the successor of the one that died."""
    stuck, other = FakeBackend(ONE_AT_A_TIME), FakeBackend(ONE_AT_A_TIME)
    stuck.may_answer.clear()
    with running_dispatcher(house), running_worker(house, stuck) as (worker, _):
        async with ready_client(house) as client:
            asked = [asking(client, question(number)) for number in (1, 2)]
            assert await begun(stuck) == [1]
            with running_worker(house, other, "worker-1"):
                assert (await asked[1]).prediction.classes[0] == 2
                worker.stop()
                stuck.may_answer.set()
                assert (await asked[0]).prediction.classes[0] == 1


async def test_two_workers_share_the_work(house: House) -> None:
    """Two images at once are computed by two workers."""
    backends = FakeBackend(ONE_AT_A_TIME), FakeBackend(ONE_AT_A_TIME)
    for backend in backends:
        backend.may_answer.clear()
    with served(house, *backends):
        async with ready_client(house) as client:
            await until(lambda: len(client._readiness.workers) == 2, "both workers")
            asked = [asking(client, question(number)) for number in (1, 2)]
            assert sorted([*await begun(backends[0]), *await begun(backends[1])]) == [1, 2]
            for backend in backends:
                backend.may_answer.set()
            await asyncio.gather(*asked)


def test_slots_of_another_map_are_refused(house: House) -> None:
    """A reader never leaves its memory."""
    with pytest.raises(IndexError):
        SlotReader(house.memory, SlotMap(1, 2), 10).view(2)


# Models that are loaded and unloaded.


async def test_a_change_is_asked_of_the_dispatcher_and_answered(house: House) -> None:
    """Each answer goes to who asked; its list of models is what the dispatcher said last."""
    async with scripted(house) as (client, dispatcher):
        entries = [ModelEntry("toy", "ready"), ModelEntry("larger", "unloaded")]
        dispatcher.say(Repository(entries))
        await until(lambda: list(client.repository) == entries, "the list")
        load = asyncio.create_task(client.change_model("larger", load=True))
        unload = asyncio.create_task(client.change_model("third", load=False))
        asked = [LoadModel(1, "larger"), UnloadModel(2, "third")]
        await until(lambda: [each for each in dispatcher.heard if each in asked] == asked, "both")
        dispatcher.say(ModelChanged(2, "default", "it stays"))
        with pytest.raises(RepositoryConflict, match="'third' is not unloaded: it stays"):
            await unload
        assert not load.done()
        dispatcher.say(ModelChanged(1))
        await load
        dispatcher.say(ModelChanged(1))  # nobody waits for it


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("busy", RepositoryConflict),
        ("no-memory", InsufficientMemory),
        ("too-slow", ModelLoadTooSlow),
        ("refused", ModelNotLoadable),
        ("differs", ModelNotLoadable),
        ("unreadable", NotReady),
        ("no-worker", NotReady),
        ("worker-lost", WorkerLost),
        ("fault", InternalFault),
    ],
)
async def test_why_a_model_is_not_loaded_is_told(
    house: House, fault: ChangeFault, problem: type[Problem]
) -> None:
    """Each in a status of its own, in the dispatcher's words."""
    async with scripted(house) as (client, dispatcher):
        load = asyncio.create_task(client.change_model("larger", load=True))
        await until(lambda: LoadModel(1, "larger") in dispatcher.heard, "the question")
        dispatcher.say(ModelChanged(1, fault, "so it is"))
        with pytest.raises(problem, match="'larger' is not loaded: so it is"):
            await load


async def test_a_change_whose_dispatcher_dies_is_not_answered_by_its_successor(house: House) -> None:
    """Who asked is told to look and ask again; without a dispatcher it is told so at once."""
    async with connected(house) as client:
        async with scripted_dispatcher(house) as made:
            await introduced(made)
            await until(lambda: client.model is not None, "a worker to be ready")
            load = asyncio.create_task(client.change_model("larger", load=True))
            await asyncio.sleep(0)
        with pytest.raises(NotReady):
            await load
        with pytest.raises(NotReady):
            await client.change_model("larger", load=True)


async def test_a_model_is_left_once_its_last_image_is_answered(house: House) -> None:
    """An image that is under way when its model is unloaded is answered by it, and only then is it left."""
    async with scripted(house) as (client, dispatcher):
        dispatcher.say(Models([MODEL, LARGER]))
        await until(lambda: "larger" in client.models, "both models")
        larger = client.models["larger"]
        with client.using(larger):
            dispatcher.say(Models([MODEL]))
            await until(lambda: "larger" not in client.models, "the model to go")
            waiting = asking(client, question(model="larger"))
            record = await dispatcher.next_record()
            assert ModelLeft("larger") not in dispatcher.heard
            dispatcher.answer(record, classes=[6])
            assert (await waiting).prediction.classes == [6]
        await until(lambda: ModelLeft("larger") in dispatcher.heard, "the model to be left")
        with pytest.raises(NotFound), client.using(larger):
            pass


async def test_an_answer_is_checked_by_the_model_as_it_was_when_it_was_asked(house: House) -> None:
    """Another model with fewer classes may have the name by then."""
    async with scripted(house) as (client, dispatcher):
        waiting = asking(client, question())
        record = await dispatcher.next_record()
        fewer = msgspec.structs.replace(MODEL, labels=MODEL.labels[:3])
        dispatcher.say(Models([fewer]))
        await until(lambda: client.models["toy"] == fewer, "the other model")
        dispatcher.answer(record, classes=[10])
        assert (await waiting).prediction.classes == [10]
