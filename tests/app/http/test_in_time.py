"""A time limit whose timer is set only where there is something to wait for."""

import asyncio

import pytest

from app.http.in_time import in_time

pytestmark = pytest.mark.anyio
WAIT_S = 60.0


def soon() -> float:
    return asyncio.get_running_loop().time() + WAIT_S


def timers() -> int:
    return len(asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]


async def test_what_need_not_wait_has_no_timer() -> None:
    """Its result or its exception comes, even where the time is over."""

    async def at_once() -> int:
        seen.append(timers())
        return 7

    async def fails() -> int:
        raise LookupError("no such thing")

    seen: list[int] = []
    before = timers()
    assert await in_time(at_once(), soon()) == 7
    assert await in_time(at_once(), 0.0) == 7
    assert seen == [before, before]
    with pytest.raises(LookupError, match="no such thing"):
        await in_time(fails(), soon())


async def test_what_waits_goes_on_as_if_awaited() -> None:
    """Several times, with results and exceptions of what it waits for."""

    async def waits() -> list[str]:
        loop = asyncio.get_running_loop()
        found: list[str] = []
        for word in ("one", "two"):
            future: asyncio.Future[str] = loop.create_future()
            loop.call_soon(future.set_result, word)
            found.append(await future)
        broken: asyncio.Future[str] = loop.create_future()
        loop.call_soon(broken.set_exception, KeyError("three"))
        try:
            await broken
        except KeyError as error:
            found.append(str(error))
        return found

    assert await in_time(waits(), soon()) == ["one", "two", "'three'"]
    assert await in_time(waits(), None) == ["one", "two", "'three'"]


async def test_what_takes_too_long_is_ended() -> None:
    """It hears of that where it waits, and TimeoutError is raised."""
    ended = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(True)
            raise

    with pytest.raises(TimeoutError):
        await in_time(endless(), asyncio.get_running_loop().time() + 0.01)
    assert ended == [True]


async def test_who_waits_may_be_cancelled() -> None:
    """The work is, too, and it may clean up in its own time."""
    cleaned: list[bool] = []
    begun = asyncio.Event()

    async def endless() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    task = asyncio.create_task(in_time(endless(), soon()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == [True]
