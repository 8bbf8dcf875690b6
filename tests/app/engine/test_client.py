"""The front end's link to the engines: against real ones, and against scripted ones that die on cue."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import numpy as np
import pytest

from app.engine.client import EngineClient, Question
from app.engine.messages import Answer, Begun, Cancel, Ping, RefusalReason, Refuse, Submit
from app.engine.scheduler import Limits
from app.errors import DeadlinePassed, EngineLost, InternalFault, NotReady, OutOfMemory, Problem, QueueFull
from app.processes.reports import EngineReport, write_reports
from models.schedule import Pruning
from tests.app.engine.rig import (
    HEIGHT,
    ONE_AT_A_TIME,
    PATIENCE_S,
    WIDTH,
    FakeBackend,
    Peer,
    ScriptedEngine,
    ask_behind,
    begun,
    connected,
    noise,
    pixels,
    question,
    ready_client,
    running_engine,
    scripted_engine,
    until,
)
from tests.app.fakes import MODEL

pytestmark = pytest.mark.anyio


def answer_to(submit: Submit, **changes: object) -> Answer:
    answer = Answer(
        id=submit.id,
        classes=[7],
        scores=[0.75],
        kept_counts=(15, 15),
        keep_ratio=1.0,
        compute=1.0,
        runs=1,
        queue_s=0.25,
        compute_s=0.5,
    )
    return msgspec.structs.replace(answer, **changes)


def asking(client: EngineClient, asked: Question) -> asyncio.Task[object]:
    return asyncio.create_task(client.classify(asked))


async def pings(engine: ScriptedEngine, number: int) -> None:
    """Wait until so many more pings have come."""
    before = engine.heard.count(Ping())
    await until(lambda: engine.heard.count(Ping()) >= before + number, "pings")


# Readiness.


async def test_without_an_engine_nothing_is_ready(address: str) -> None:
    """Where no engine answers in time, images are refused with a time to come back."""
    async with connected(address, patience_s=0.05) as client:
        assert client.model is None
        assert client.engines == [{"ready": False, "device": None, "images_pending": 0}]
        assert repr(client) == "<EngineClient 0 of 1 engines ready, 0 images pending>"
        with pytest.raises(NotReady) as caught:
            await client.classify(question())
        assert caught.value.retry_after_s is not None
        with pytest.raises(NotReady):
            await client.wait_until_ready(PATIENCE_S)


async def test_what_an_engine_served_is_known_while_it_is_away(address: str) -> None:
    """The last model stays known when its engine has gone; before there was one, none is."""
    async with connected(address) as client:
        assert client.last_model is None
        with running_engine(FakeBackend(), address):
            await client.wait_until_ready(PATIENCE_S)
        await until(lambda: client.model is None, "the engine to be missed")
        assert client.last_model == MODEL


async def test_what_comes_before_an_engine_waits_for_it(address: str) -> None:
    """Images and callers that come while no engine is ready are served as soon as one is."""
    async with connected(address) as client:
        model = asyncio.create_task(client.wait_until_ready(PATIENCE_S))
        asked = [asking(client, question(number)) for number in (2, 3)]
        await until(lambda: "2 images pending" in repr(client), "the images to wait")
        backend = FakeBackend()
        with running_engine(backend, address):
            assert await model == MODEL
            answers = await asyncio.gather(*asked)
    assert [answer.answer.classes[0] for answer in answers] == [2, 3]


async def test_no_more_wait_than_may(address: str) -> None:
    """The waiting room is bounded: what is too much is told at once to come back later."""
    async with connected(address, most_waiting=2) as client:
        waiting = [asking(client, question(number)) for number in (1, 2)]
        waiting += [asyncio.create_task(client.wait_until_ready(PATIENCE_S)) for _ in range(2)]
        await until(lambda: "2 images pending" in repr(client), "the images to wait")
        with pytest.raises(QueueFull, match="2 images wait"):
            await client.classify(question(3))
        with pytest.raises(QueueFull, match="2 requests wait"):
            await client.wait_until_ready(PATIENCE_S)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert "0 images pending" in repr(client)


async def test_waiting_ends_where_the_supervisor_expects_no_engine(address: str, tmp_path: Path) -> None:
    """Engines that have failed to start again and again are not waited for; the answer says why."""
    reports = tmp_path / "engines.json"
    write_reports(reports, [EngineReport("engine-0")])
    async with connected(address, reports=reports) as client:
        asked = asking(client, question())
        waiting = asyncio.create_task(client.wait_until_ready(PATIENCE_S))
        await until(lambda: "1 images pending" in repr(client), "the image to wait")
        assert client.trouble is None
        write_reports(
            reports, [EngineReport("engine-0", 5, "OSError: no disk", time.monotonic() + 60, given_up=True)]
        )
        words = "engine-0 failed to start 5 times in a row, the last time with: OSError: no disk"
        for task in (asked, waiting, asking(client, question())):
            with pytest.raises(NotReady, match=words) as caught:
                await task
            assert caught.value.retry_after_s is not None
            assert 30 < caught.value.retry_after_s <= 60
        assert client.trouble is not None
        with running_engine(FakeBackend(), address):
            await until(lambda: client.model is not None, "the engine to be ready")
            assert client.trouble is None
            await client.classify(question())


async def test_an_engine_that_comes_up_later_is_found(address: str) -> None:
    """A client started before its engine becomes ready with it, and knows the engine's model."""
    async with connected(address) as client:
        with running_engine(FakeBackend(), address):
            await until(lambda: client.model is not None, "the engine to be ready")
            assert client.model == MODEL
            assert client.engines == [{"ready": True, "device": "cpu:0", "images_pending": 0}]


async def test_an_engine_that_loads_is_not_ready(address: str) -> None:
    """An engine that answers, but has no model yet, is asked nothing."""
    async with scripted_engine(address) as engine, connected(address, patience_s=0.05) as client:
        engine.status = msgspec.structs.replace(engine.status, model=None)
        await pings(engine, 2)
        assert client.model is None
        with pytest.raises(NotReady):
            await client.classify(question())
        assert engine.submitted.empty()


async def test_an_engine_that_has_gone_is_not_ready_any_more(address: str) -> None:
    """An engine is not called ready because it once was."""
    async with AsyncExitStack() as stack:
        async with scripted_engine(address):
            client = await stack.enter_async_context(ready_client(address, patience_s=0.05))
        await until(lambda: client.model is None, "the loss to be noticed")
        with pytest.raises(NotReady):
            await client.classify(question())


async def test_a_silent_engine_is_sent_nothing_until_it_speaks_again(address: str) -> None:
    """An engine that lives but says nothing (stopped, or starved) is not ready; what came meanwhile is sent
    to it once it is there again, and what it had stays with it."""
    async with scripted_engine(address) as engine, ready_client(address) as client:
        first = asking(client, question(1))
        sender, submit, _ = await engine.next_submit()
        engine.mute = True
        await until(lambda: client.model is None, "the silence to be noticed")
        second = asking(client, question(2))
        await pings(engine, 2)
        assert engine.submitted.empty()
        engine.mute = False
        _, later, frame = await engine.next_submit()
        assert frame == pixels(2)
        for one in (submit, later):
            await engine.say(sender, answer_to(one))
        await asyncio.gather(first, second)


async def test_repr_is_a_status_line(address: str) -> None:
    """What a debugger or a log shows of a client says how its engines are."""
    async with scripted_engine(address) as engine, ready_client(address) as client:
        asked = asking(client, question())
        sender, submit, _ = await engine.next_submit()
        assert repr(client) == "<EngineClient 1 of 1 engines ready, 1 images pending>"
        assert client.engines[0]["images_pending"] == 1
        await engine.say(sender, answer_to(submit))
        await asked
        assert repr(client) == "<EngineClient 1 of 1 engines ready, 0 images pending>"


# Answers.


async def test_a_question_and_its_answer_travel_whole(address: str) -> None:
    """Everything asked reaches the engine; the answer, with its little-endian uint16 frames, comes back."""
    async with scripted_engine(address) as engine, ready_client(address) as client:
        noisy = np.random.default_rng(3).integers(0, 256, (3, WIDTH, HEIGHT), np.uint8)
        asked = asking(
            client,
            Question(
                pixels=noisy.transpose(2, 1, 0),
                pruning=Pruning(0.5, "iqr", "fuse", seed=23),
                margin=0.25,
                top_k=4,
                kept_patches=True,
                deadline_s=9.0,
            ),
        )
        sender, submit, frame = await engine.next_submit()
        assert submit == Submit(
            id=1,
            pruning=Pruning(0.5, "iqr", "fuse", seed=23),
            margin=0.25,
            top_k=4,
            kept_patches=True,
            deadline_s=9.0,
        )
        assert np.array_equal(
            np.frombuffer(frame, np.uint8).reshape(HEIGHT, WIDTH, 3), noisy.transpose(2, 1, 0)
        )
        answer = answer_to(submit, kept_counts=(2, 1))
        await engine.say(sender, answer, b"\x01\x02\x03\x04", b"\x05\x00")
        classified = await asked
    assert classified.answer == answer
    assert [stage.tolist() for stage in classified.kept] == [[513, 1027], [5]]
    assert [stage.dtype for stage in classified.kept] == [np.uint16, np.uint16]


async def test_answers_in_any_order_reach_the_right_questions(address: str) -> None:
    """Of many images under way, each gets the answer with its id."""
    async with scripted_engine(address) as engine, ready_client(address) as client:
        asked = [asking(client, question(number)) for number in range(5)]
        submits = [await engine.next_submit() for _ in asked]
        for sender, submit, frame in reversed(submits):
            await engine.say(sender, answer_to(submit, classes=[frame[0]]))
        answers = await asyncio.gather(*asked)
    assert [answer.answer.classes for answer in answers] == [[0], [1], [2], [3], [4]]


async def test_nonsense_and_strays_from_an_engine_are_passed_over(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is no message, or is about images that nobody asks about, disturbs nobody."""
    async with scripted_engine(address) as engine, ready_client(address) as client:
        asked = asking(client, question())
        sender, submit, _ = await engine.next_submit()
        await engine.send(sender, b"\xc1")
        await engine.send(sender, b"")
        await engine.send(sender, noise({"type": "Ping"}))
        await engine.say(sender, answer_to(submit, id=999))
        await engine.say(sender, Refuse(id=999, reason="queue-full", retry_after_s=1.0))
        await engine.say(sender, answer_to(submit))
        await engine.say(sender, answer_to(submit, classes=[8]))
        await engine.say(sender, Refuse(id=submit.id, reason="queue-full", retry_after_s=1.0))
        assert (await asked).answer.classes == [7]
        await pings(engine, 2)
        assert client.model == MODEL
    assert caplog.text.count("an engine sent what is no message") == 1, "the same again is not told"


async def test_an_answer_that_cannot_be_used_fails_its_image_only(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Frames of an odd size, a label that the model has not, scores that are no numbers: the link goes on."""
    async with scripted_engine(address) as engine, ready_client(address) as client:
        for changes, frames in (
            ({}, [b"odd"]),
            ({"classes": [11]}, []),
            ({"scores": [float("nan")]}, []),
        ):
            asked, other = asking(client, question(1)), asking(client, question(2))
            for found, (sender, submit, _) in [
                ((changes, frames), await engine.next_submit()),
                (({}, []), await engine.next_submit()),
            ]:
                await engine.say(sender, answer_to(submit, **found[0]), *found[1])
            with pytest.raises(InternalFault, match="cannot be used"):
                await asked
            assert (await other).answer.classes == [7]
    assert caplog.text.count("an engine sent what is no answer to its image") == 1


@pytest.mark.parametrize(
    ("reason", "problem", "retry_after_s"),
    [
        ("queue-full", QueueFull, 2.5),
        ("deadline-passed", DeadlinePassed, None),
        ("out-of-memory", OutOfMemory, 2.5),
        ("engine-fault", InternalFault, None),
    ],
)
async def test_each_refusal_is_its_problem(
    address: str, reason: RefusalReason, problem: type[Problem], retry_after_s: float | None
) -> None:
    """What an engine refuses is raised as the problem that says why, and when to come back."""
    async with scripted_engine(address) as engine, ready_client(address) as client:
        asked = asking(client, question())
        sender, submit, _ = await engine.next_submit()
        await engine.say(sender, Refuse(id=submit.id, reason=reason, retry_after_s=2.5))
        with pytest.raises(problem) as caught:
            await asked
        assert caught.value.retry_after_s == retry_after_s
        assert "0 images pending" in repr(client)
        assert not any(isinstance(message, Cancel) for message in engine.heard)


async def test_a_full_queue_refuses(address: str) -> None:
    """With a real engine, the image too many raises QueueFull and the others are answered."""
    backend = FakeBackend(Limits(batch_tokens=1, queue_images=1, threads=1, streams=1))
    with running_engine(backend, address):
        async with ready_client(address) as client:
            asked = await ask_behind(client, backend, question(1), question(2), question(3))
            with pytest.raises(QueueFull):
                await asked[2]
            backend.may_answer.set()
            first, second = await asyncio.gather(*asked[:2])
    assert (first.answer.classes[0], second.answer.classes[0]) == (1, 2)


# Deadlines and cancelling.


async def test_a_passed_deadline_is_answered_and_the_image_never_computed(address: str) -> None:
    """The client answers on time even where the engine is busy, and the engine drops the image."""
    backend = FakeBackend(ONE_AT_A_TIME)
    with running_engine(backend, address), Peer(address) as peer:
        async with ready_client(address) as client:
            asked = await ask_behind(client, backend, question(1), question(2, deadline_s=0.05))
            with pytest.raises(DeadlinePassed):
                await asked[1]
            await until(lambda: peer.status().waiting_tokens == 0, "the image to leave the queue")
            backend.may_answer.set()
            await asked[0]
            await client.classify(question(3))
    assert backend.numbers == [1, 3]


async def test_a_deadline_does_not_need_the_engine(address: str) -> None:
    """An engine that never says a word does not keep an answer back; it is told that nobody waits."""
    async with scripted_engine(address) as engine, ready_client(address) as client:
        asked = asking(client, question(deadline_s=0.05))
        _, submit, _ = await engine.next_submit()
        with pytest.raises(DeadlinePassed, match="no answer within the 50 ms that were left"):
            await asked
        await until(lambda: Cancel(id=submit.id) in engine.heard, "the cancel")
        assert "0 images pending" in repr(client)


async def test_a_cancelled_question_is_withdrawn_and_never_computed(address: str) -> None:
    """Where the asker goes, the image leaves the engine's queue."""
    backend = FakeBackend(ONE_AT_A_TIME)
    with running_engine(backend, address), Peer(address) as peer:
        async with ready_client(address) as client:
            asked = await ask_behind(client, backend, question(1), question(2), question(3))
            await until(lambda: peer.status().waiting_tokens == 2 * 17, "two images to wait")
            asked[1].cancel()
            await until(lambda: peer.status().waiting_tokens == 17, "one of them to leave")
            backend.may_answer.set()
            await asyncio.gather(asked[0], asked[2])
            assert asked[1].cancelled()
            assert "0 images pending" in repr(client)
    assert backend.numbers == [1, 3]


async def test_closing_fails_what_is_pending(address: str) -> None:
    """No asker hangs when the front end shuts down."""
    async with scripted_engine(address) as engine:
        async with ready_client(address) as client:
            asked = asking(client, question())
            await engine.next_submit()
        with pytest.raises(NotReady, match="shutting down") as caught:
            await asked
        assert caught.value.retry_after_s is not None


# Engines that die.


async def test_what_an_engine_took_with_it_goes_to_its_successor(address: str) -> None:
    """Images that a dead engine had are computed by the next one at its address, and answered."""
    async with AsyncExitStack() as stack:
        async with scripted_engine(address) as dying:
            client = await stack.enter_async_context(ready_client(address))
            asked = [asking(client, question(number)) for number in (4, 9)]
            for _ in asked:
                await dying.next_submit()
        backend = FakeBackend()
        with running_engine(backend, address):
            answers = await asyncio.gather(*asked)
    assert [answer.answer.classes[0] for answer in answers] == [4, 9]
    assert sorted(backend.numbers) == [4, 9]


async def test_a_successor_gets_the_same_image_with_the_time_that_is_left(address: str) -> None:
    """Sending again changes nothing but the deadline, which goes on running; a status repeated sends
    nothing again."""
    async with AsyncExitStack() as stack:
        async with scripted_engine(address, "one") as dying:
            client = await stack.enter_async_context(ready_client(address))
            asked = asking(client, question(6, keep_ratio=0.5, kept_patches=True))
            _, first, _ = await dying.next_submit()
            await pings(dying, 3)
            assert dying.submitted.empty()
        successor = await stack.enter_async_context(scripted_engine(address, "two"))
        sender, again, frame = await successor.next_submit()
        assert frame == pixels(6)
        assert again.deadline_s < first.deadline_s == PATIENCE_S
        assert msgspec.structs.replace(again, deadline_s=PATIENCE_S) == first
        await pings(successor, 3)
        assert successor.submitted.empty()
        await successor.say(sender, answer_to(again, kept_counts=()))
        await asked


async def test_a_successor_that_still_loads_is_sent_nothing_yet(address: str) -> None:
    """Images wait for the successor's model, lest it refuse them."""
    async with AsyncExitStack() as stack:
        async with scripted_engine(address, "one") as dying:
            client = await stack.enter_async_context(ready_client(address))
            asked = asking(client, question(6))
            await dying.next_submit()
        successor = await stack.enter_async_context(scripted_engine(address, "two"))
        loaded = successor.status
        successor.status = msgspec.structs.replace(loaded, model=None)
        await pings(successor, 3)
        assert successor.submitted.empty()
        successor.status = loaded
        sender, again, _ = await successor.next_submit()
        await successor.say(sender, answer_to(again))
        await asked


async def test_an_image_that_two_engines_died_computing_is_given_up(address: str) -> None:
    """An image that may be what kills engines is not given a third; others are asked on."""
    async with AsyncExitStack() as stack:
        async with scripted_engine(address, "one") as dying:
            client = await stack.enter_async_context(ready_client(address))
            asked = asking(client, question())
            await begin(dying, 1)
        async with scripted_engine(address, "two") as dying:
            await begin(dying, 1)
        third = await stack.enter_async_context(scripted_engine(address, "three"))
        with pytest.raises(EngineLost, match="2 engines died") as caught:
            await asked
        assert (caught.value.status, caught.value.retry_after_s) == (500, None)
        assert third.submitted.empty()
        asked = asking(client, question())
        sender, submit, _ = await third.next_submit()
        await third.say(sender, answer_to(submit))
        await asked


async def test_waiting_in_an_engine_that_dies_is_no_ground_for_suspicion(address: str) -> None:
    """Images that no engine had begun to compute are sent on, however many engines die."""
    async with AsyncExitStack() as stack:
        async with scripted_engine(address, "0") as dying:
            client = await stack.enter_async_context(ready_client(address))
            asked = asking(client, question())
            await dying.next_submit()
        for incarnation in ("1", "2", "3"):
            async with scripted_engine(address, incarnation) as dying:
                await dying.next_submit()
        last = await stack.enter_async_context(scripted_engine(address, "last"))
        sender, submit, _ = await last.next_submit()
        await last.say(sender, answer_to(submit))
        await asked


async def test_an_image_that_many_engines_died_with_is_given_up(address: str) -> None:
    """One that kills an engine faster than it can say what it has begun does not go round for ever."""
    async with AsyncExitStack() as stack:
        async with scripted_engine(address, "0") as dying:
            client = await stack.enter_async_context(ready_client(address))
            asked = asking(client, question())
            await dying.next_submit()
        for incarnation in ("1", "2", "3", "4"):
            async with scripted_engine(address, incarnation) as dying:
                await dying.next_submit()
        with pytest.raises(EngineLost, match="5 engines died while they had this image, 0 of them"):
            await asked


async def test_only_the_image_at_fault_is_given_up(address: str) -> None:
    """Of a batch that an engine died with, each image is tried alone, before any other: the one at fault
    takes nobody with it."""
    async with AsyncExitStack() as stack:
        async with scripted_engine(address, "one") as dying:
            client = await stack.enter_async_context(ready_client(address))
            asked = [asking(client, question(number)) for number in (1, 2, 3, 4)]
            await begin(dying, 3)  # the fourth waits in the engine
        async with scripted_engine(address, "two") as dying:
            sender, first, frame = await dying.next_submit()
            assert (frame, first.suspect) == (pixels(1), True)
            await pings(dying, 2)
            assert dying.submitted.empty(), "it is alone"
            await dying.say(sender, Begun([first.id]))
            await dying.say(sender, answer_to(first))
            await asked[0]
            assert (await begin(dying, 1)) == [pixels(2)]  # this one is at fault
            await pings(dying, 2)
            assert dying.submitted.empty()
        last = await stack.enter_async_context(scripted_engine(address, "three"))
        with pytest.raises(EngineLost):
            await asked[1]
        for number in (3, 4):
            sender, submit, frame = await last.next_submit()
            assert (frame, submit.suspect) == (pixels(number), number == 3)
            await last.say(sender, answer_to(submit))
        await asyncio.gather(*asked[2:])


async def begin(engine: ScriptedEngine, number: int) -> list[bytes]:
    """Have the engine say that it computes the next images, and wait until that has been heard; their
    pixels."""
    submits = [await engine.next_submit() for _ in range(number)]
    await engine.say(submits[0][0], Begun([submit.id for _, submit, _ in submits]))
    await pings(engine, 2)  # the status that answers the first comes after
    return [frame for _, _, frame in submits]


async def test_what_one_engine_took_with_it_goes_to_another(
    two: "tuple[EngineClient, ScriptedEngine, ScriptedEngine]", address: str
) -> None:
    """Where several engines serve, nobody waits for the successor of the one that died."""
    client, one, other = two
    asked = asking(client, question(5))
    await one.next_submit()
    await one.die()
    sender, submit, frame = await other.next_submit()
    assert frame == pixels(5)
    await other.say(sender, answer_to(submit))
    await asked


# Several engines.


@pytest.fixture
async def two(address: str) -> AsyncIterator[tuple[EngineClient, ScriptedEngine, ScriptedEngine]]:
    """A client that is ready with two scripted engines."""
    async with (
        scripted_engine(f"{address}-0", "a") as one,
        scripted_engine(f"{address}-1", "b") as other,
        ready_client(f"{address}-0", f"{address}-1") as client,
    ):
        yield client, one, other


async def test_the_engine_with_the_fewest_pending_images_is_asked(
    two: tuple[EngineClient, ScriptedEngine, ScriptedEngine],
) -> None:
    """Images go where the fewest are in hand, whoever answers faster gets more."""
    client, one, other = two
    tasks = [asking(client, question(1)), asking(client, question(2))]
    to_one = await one.next_submit()
    to_other = await other.next_submit()
    await other.say(to_other[0], answer_to(to_other[1]))
    await tasks[1]
    for number in (3, 4):
        tasks.append(asking(client, question(number)))
        sender, submit, frame = await other.next_submit()
        assert frame[0] == number
        await other.say(sender, answer_to(submit))
        await tasks[-1]
    assert one.submitted.empty()
    assert [engine["images_pending"] for engine in client.engines] == [1, 0]
    await one.say(to_one[0], answer_to(to_one[1]))
    await asyncio.gather(*tasks)


async def test_an_engine_that_is_not_ready_is_passed_over(
    two: tuple[EngineClient, ScriptedEngine, ScriptedEngine],
) -> None:
    """While one engine loads, the other gets all images and the client stays ready."""
    client, one, other = two
    one.status = msgspec.structs.replace(one.status, model=None)
    await until(lambda: not client.engines[0]["ready"], "the status to be heard")
    assert client.model == MODEL
    tasks = [asking(client, question(number)) for number in (1, 2, 3)]
    for _ in tasks:
        sender, submit, _ = await other.next_submit()
        await other.say(sender, answer_to(submit))
    await asyncio.gather(*tasks)
    assert one.submitted.empty()


async def test_two_real_engines_share_the_work(address: str) -> None:
    """Two images at once are computed by two engines."""
    backends = FakeBackend(), FakeBackend()
    for backend in backends:
        backend.may_answer.clear()
    with running_engine(backends[0], f"{address}-0"), running_engine(backends[1], f"{address}-1", "cpu:1"):
        async with ready_client(f"{address}-0", f"{address}-1") as client:
            asked = [asking(client, question(number)) for number in (1, 2)]
            assert await begun(backends[0]) == [1]
            assert await begun(backends[1]) == [2]
            for backend in backends:
                backend.may_answer.set()
            await asyncio.gather(*asked)
