"""Work goes on while its client is there, and no longer."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from app.http.client_gone import tells_when_gone, unless_gone


def of_client_that_goes(when: asyncio.Event) -> Request:
    """A request whose body has been read, of a client that goes away then."""

    async def receive() -> dict[str, Any]:
        await when.wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "headers": []}, receive)


def test_the_result_and_what_is_raised_are_passed_on() -> None:
    """The client is not looked for any more then."""

    async def main() -> None:
        request = of_client_that_goes(asyncio.Event())
        assert await unless_gone(request, asyncio.sleep(0, 7)) == 7

        async def fails() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await unless_gone(request, fails())
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_where_the_client_goes_the_work_is_withdrawn() -> None:
    """It may clean up, also by waiting, and the task that asked for it goes on."""

    async def main() -> None:
        gone, cleaned = asyncio.Event(), []

        async def work() -> None:
            try:
                gone.set()
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.01)
                cleaned.append(True)

        with pytest.raises(ClientDisconnect):
            await unless_gone(of_client_that_goes(gone), work())
        assert cleaned == [True]
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)

    asyncio.run(main())


def test_a_server_that_tells_needs_no_task_to_look() -> None:
    """Nobody receives; the work is withdrawn as soon as it is told, also before it began."""

    async def main() -> None:
        async def receive() -> dict[str, Any]:
            raise AssertionError

        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        request = Request({"type": "http", "headers": []}, receive)
        tells_when_gone(request.scope, gone)
        assert await unless_gone(request, asyncio.sleep(0, 7)) == 7
        asyncio.get_running_loop().call_later(0.01, gone.set_result, None)
        for _ in range(2):
            with pytest.raises(ClientDisconnect):
                await unless_gone(request, asyncio.sleep(60))

    asyncio.run(main())


def test_a_deadline_within_the_work_stays_one() -> None:
    """Also where the client goes away later."""

    async def main() -> None:
        async def late() -> None:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)

        with pytest.raises(TimeoutError):
            await unless_gone(of_client_that_goes(asyncio.Event()), late())

    asyncio.run(main())


def test_whoever_cancels_the_request_cancels_its_work() -> None:
    """That is no client that has gone."""

    async def main() -> None:
        def asked() -> Coroutine[Any, Any, None]:
            return unless_gone(of_client_that_goes(asyncio.Event()), asyncio.sleep(60))

        task = asyncio.create_task(asked())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
