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
    raised: a queue must not keep what nobody waits for."""
    working, gone = background.awaited(work, "answer"), background.awaited(_disconnect(request), "client")
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        gone.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})


async def _disconnect(request: Request) -> None:
    """Returns when the client has gone away. The body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
