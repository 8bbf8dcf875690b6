"""The open requests of one HTTP process, and the limits of time and memory for one request.

It adds what uvicorn does not have: a limit for the time of a body, a limit for the memory of all bodies
together, and the refusal of new requests while the process stops. (For connections and headers, see
app.http.server.connections.)
"""

import asyncio
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import NotReady, TooSlow
from app.http.bodies.memory import Memory, Share, set_share
from app.http.head import header_of
from app.http.in_time import in_time
from app.http.paths import known
from app.http.problems import problem_response

# A body must arrive within its deadline plus the time that it takes at this rate. This allows slow mobile
# connections, but not clients that send a byte from time to time.
SLOWEST_BYTES_PER_S = 16 * 1024
_RETRY_AFTER_S = 1.0


@dataclass(slots=True)
class Traffic:
    """The open requests, and whether the process is stopping."""

    requests: int = 0
    stopping: bool = False


class Bounded:
    """Refuses new requests while stopping, bodies that arrive too slowly, and bodies that need too much
    memory."""

    def __init__(self, app: ASGIApp, traffic: Traffic, body_timeout_s: float, most_body_bytes: int) -> None:
        self._app = app
        self._traffic = traffic
        self._body_timeout_s = body_timeout_s
        self._memory = Memory(most_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, unless the process is stopping."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._traffic.stopping and not known(scope["path"]).while_stopping:
            refusal = NotReady("the server is shutting down", retry_after_s=_RETRY_AFTER_S)
            await problem_response(refusal, scope["path"], {"Connection": "close"})(scope, receive, send)
            return
        share = Share(self._memory)
        set_share(scope, share)
        body = _Body(share, receive, self._body_timeout_s)
        self._traffic.requests += 1
        try:
            await self._app(scope, body.receive if _has_body(scope) else receive, send)
        finally:
            self._traffic.requests -= 1
            share.keep(0)


class _Body:
    """An incoming request body."""

    def __init__(self, share: Share, receive: Receive, timeout_s: float) -> None:
        self._received = 0
        self._share = share
        self._receive = receive
        self._timeout_s = timeout_s
        self._started = asyncio.get_running_loop().time()
        self._whole = False

    async def receive(self) -> Message:
        """The next part. Raises TooSlow, TooLarge or Overloaded. After the body, it waits for the client's
        disconnect."""
        if self._whole:
            return await self._receive()
        try:
            until = self._started + self._timeout_s + self._received / SLOWEST_BYTES_PER_S
            message = await in_time(self._receive(), until)
        except TimeoutError:
            raise TooSlow(
                f"only {self._received} bytes of the body arrived in time; allowed are "
                f"{self._timeout_s:g} s plus the time needed at {SLOWEST_BYTES_PER_S} bytes per second"
            ) from None
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._received += size
            self._whole = not message.get("more_body", False)
            self._share.take(size)
        return message


def _has_body(scope: Scope) -> bool:
    length = header_of(scope, b"content-length")
    return length not in (None, "0") or header_of(scope, b"transfer-encoding") is not None
