"""Turns a gRPC call into a request to the application, so that keys, limits, deadlines, metrics and errors
are the same as over HTTP."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from app.http.client_gone import tells_when_gone
from app.processes import background

# Metadata of a call that the application reads as headers.
_READ = frozenset(("authorization", "x-api-key", "x-request-id", "traceparent", "tracestate"))
# Headers that proxies add, which show that the client is on another machine.
_READ |= frozenset(("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"))


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller. ``address``: as (host, port); None if it has none, as over a Unix socket."""

    address: tuple[str, int] | None
    headers: Sequence[tuple[bytes, bytes]]
    secure: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of the application."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The error message of an answer that is an error."""
        try:
            return str(self.document["error"])
        except (KeyError, TypeError, ValueError):
            return f"the answer has the status {self.status}"


def caller(peer: str, metadata: Sequence[tuple[str, str | bytes]], *, secure: bool) -> Caller:
    """The caller, from gRPC's description of the connection (``ipv4:127.0.0.1:50000``, ``ipv6:[::1]:50000``,
    in which gRPC writes brackets as %5B and %5D) and of the call."""
    kind, _, rest = peer.replace("%5B", "[").replace("%5D", "]").partition(":")
    host, _, port = rest.rpartition(":")
    address = (host.strip("[]"), int(port)) if kind in ("ipv4", "ipv6") and port.isdecimal() else None
    headers = [
        (name.encode(), value.encode("latin-1", "replace"))
        for name, value in metadata
        if name in _READ and isinstance(value, str)
    ]
    return Caller(address, headers, secure)


async def ask(app: ASGIApp, caller: Caller, method: str, path: str, body: Sequence[bytes] = ()) -> Answer:
    """Send a request for ``path`` to the application. ``body``: its parts, which the application counts as it
    reads them. If this is cancelled, the application sees a disconnected client, as over HTTP."""
    gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    answer = _Answering()
    scope = _scope(caller, method, path, sum(map(len, body)))
    tells_when_gone(scope, gone)
    asking = background.awaited(_run(app, scope, _Body(body, gone), answer), "gRPC call")
    try:
        await asyncio.shield(asking)
    except asyncio.CancelledError:
        gone.set_result(None)
        await asking
        raise
    return answer.made()


async def _run(app: ASGIApp, scope: Scope, body: "_Body", answer: "_Answering") -> None:
    await app(scope, body.receive, answer.send)


def _scope(caller: Caller, method: str, path: str, size: int) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "2",
        "method": method,
        "scheme": "https" if caller.secure else "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [*caller.headers, (b"content-length", str(size).encode())],
        "client": caller.address,
        "server": None,
        "state": {},
    }


class _Body:
    """The parts of a request body, one after the other, and then the disconnect of the client."""

    def __init__(self, parts: Sequence[bytes], gone: asyncio.Future[None]) -> None:
        self._parts = list(reversed(parts)) or [b""]
        self._gone = gone

    async def receive(self) -> Message:
        """ASGI's receive."""
        if self._parts:
            part = self._parts.pop()
            return {"type": "http.request", "body": part, "more_body": bool(self._parts)}
        await asyncio.shield(self._gone)
        return {"type": "http.disconnect"}


class _Answering:
    """Collects an answer."""

    def __init__(self) -> None:
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []

    async def send(self, message: Message) -> None:
        """ASGI's send."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = {
                name.decode("latin-1").lower(): value.decode("latin-1") for name, value in message["headers"]
            }
        elif message["type"] == "http.response.body":
            self._body.append(message.get("body", b""))

    def made(self) -> Answer:
        """The whole answer."""
        return Answer(self._status, self._headers, b"".join(self._body))
