"""Work for a request, withdrawn where its client goes away."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.processes import background

T = TypeVar("T")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work comes to. Where the client goes away first, the work is withdrawn and ClientDisconnect
    raised: a queue must not keep what nobody waits for.

    The work is done in the task that asks for it. Another one looks for the client, and cancels this one.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = background.awaited(_disconnect(request), "client")
    has_gone = False

    def withdraw(_: asyncio.Task[None]) -> None:
        nonlocal has_gone
        has_gone = True
        task.cancel()

    gone.add_done_callback(withdraw)
    try:
        return await work
    except asyncio.CancelledError:
        if has_gone and task.uncancel() == 0:  # nobody else cancels it
            raise ClientDisconnect from None
        raise
    finally:
        gone.remove_done_callback(withdraw)
        gone.cancel()


async def _disconnect(request: Request) -> None:
    """Returns when the client has gone away. The body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
