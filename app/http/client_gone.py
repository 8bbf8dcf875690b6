"""Cancels the work for a request when its client disconnects."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from app.processes import background

T = TypeVar("T")

_GONE = "client_gone"


def tells_when_gone(scope: Scope, gone: asyncio.Future[None]) -> None:
    """Note that this future gets a result when the request's client disconnects."""
    scope.setdefault("state", {})[_GONE] = gone


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work. If the client disconnects first, the work is cancelled and ClientDisconnect
    raised: a queue must not keep what nobody waits for.

    The work runs in the calling task. It is cancelled by the server's notice that the client has gone
    (`tells_when_gone`) or, under another server than ours, by a task that watches the client.
    """
    task = asyncio.current_task()
    assert task is not None
    told: asyncio.Future[None] | None = request.scope.get("state", {}).get(_GONE)
    gone = background.awaited(_disconnect(request), "client") if told is None else told
    has_gone = False

    def withdraw(_: asyncio.Future[None]) -> None:
        nonlocal has_gone
        has_gone = True
        task.cancel()

    gone.add_done_callback(withdraw)
    try:
        return await work
    except asyncio.CancelledError:
        if has_gone and task.uncancel() == 0:  # nothing else has cancelled the task
            raise ClientDisconnect from None
        raise
    finally:
        gone.remove_done_callback(withdraw)
        if told is None:
            gone.cancel()


async def _disconnect(request: Request) -> None:
    """Returns when the client has disconnected. The body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
