"""Work off the event loop, fair between callers."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.decoding.fair_executor import FairExecutor

WAIT_S = 60


class Gate:
    """Work that runs until it is let go."""

    def __init__(self) -> None:
        self.running = threading.Semaphore(0)
        self.open = threading.Event()

    def pass_through(self, value: int) -> int:
        self.running.release()
        assert self.open.wait(WAIT_S)
        return value

    async def until_running(self, number: int) -> None:
        for _ in range(number):
            assert await asyncio.to_thread(self.running.acquire, timeout=WAIT_S)


def test_it_gives_back_what_the_function_returns_or_raises() -> None:
    """Values and exceptions, with all arguments."""

    async def main() -> None:
        with ThreadPoolExecutor(2) as threads:
            fair = FairExecutor(threads, 2)
            assert await fair.run("a", sorted, [2, 3, 1], reverse=True) == [3, 2, 1]
            with pytest.raises(ValueError, match="invalid literal"):
                await fair.run("a", int, "x")
            assert repr(fair) == "<FairExecutor: <Turns: 2 free, 0 held, 0 waiting>>"

    asyncio.run(main())


def test_the_event_loop_goes_on_and_another_caller_is_served() -> None:
    """While one caller's work blocks its places, the loop runs, and the next caller gets the last place."""

    async def main() -> None:
        gate = Gate()
        with ThreadPoolExecutor(3) as threads:
            fair = FairExecutor(threads, 3)
            stuck = [asyncio.create_task(fair.run("a", gate.pass_through, number)) for number in range(5)]
            await gate.until_running(2)
            assert await asyncio.wait_for(fair.run("b", abs, -7), WAIT_S) == 7
            assert repr(fair) == "<FairExecutor: <Turns: 1 free, 2 held, 3 waiting>>"
            gate.open.set()
            assert await asyncio.gather(*stuck) == [0, 1, 2, 3, 4]

    asyncio.run(main())


def test_cancelled_work_leaves_the_queue_or_keeps_its_place_until_it_ends() -> None:
    """Work that waits is never called once its task is cancelled; work that runs holds its place."""

    async def main() -> None:
        gate, called = Gate(), []
        with ThreadPoolExecutor(1) as threads:
            fair = FairExecutor(threads, 1)
            running = asyncio.create_task(fair.run("a", gate.pass_through, 1))
            waiting = asyncio.create_task(fair.run("b", called.append, 2))
            await gate.until_running(1)
            for task in (running, waiting):
                task.cancel()
            await asyncio.wait({running, waiting})
            assert repr(fair) == "<FairExecutor: <Turns: 0 free, 1 held, 0 waiting>>"
            gate.open.set()
            assert await asyncio.wait_for(fair.run("c", abs, -3), WAIT_S) == 3
            assert called == []

    asyncio.run(main())


def test_work_cancelled_at_the_moment_of_its_turn_gives_its_place_back() -> None:
    """No place is lost between the turn and the task's hearing of it."""

    async def main() -> None:
        with ThreadPoolExecutor(1) as threads:
            fair = FairExecutor(threads, 1)
            given = asyncio.create_task(fair.run("a", abs, -1))
            waiting = asyncio.create_task(fair.run("b", abs, -2))
            await asyncio.sleep(0)  # both have asked; the first has its turn, and has not heard of it
            waiting.cancel()
            given.cancel()
            await asyncio.wait({given, waiting})
            assert await asyncio.wait_for(fair.run("c", abs, -3), WAIT_S) == 3
            assert repr(fair) == "<FairExecutor: <Turns: 1 free, 0 held, 0 waiting>>"

    asyncio.run(main())


def test_an_executor_that_takes_no_work_costs_no_place() -> None:
    """Its refusal is passed on, again and again."""

    async def main() -> None:
        threads = ThreadPoolExecutor(1)
        threads.shutdown()
        fair = FairExecutor(threads, 1)
        for _ in range(3):
            with pytest.raises(RuntimeError):
                await asyncio.wait_for(fair.run("a", abs, -1), WAIT_S)

    asyncio.run(main())
