"""Connections to the HTTPS port until the TLS handshake is done: counted, timed, and small until the client
sends something.

asyncio's own listener creates a TLS object and a buffer of 256 KiB for every connection before its first
byte, reports it only after the handshake, and closes a client that speaks plain HTTP without a message. It
also begins all handshakes at once: two thousand take seconds, in which nobody else is answered.
"""

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from typing import Any

from app.errors import Overloaded, UnreadableRequest
from app.http.clients import client_of
from app.http.server.connections import Connection
from app.security.tls import Certificates
from app.telemetry import metrics
from app.turns import Turns

# This many excess connections get an error response, which needs a handshake. Beyond that, connections are
# closed without one.
_TOLD = 100
_READ_BYTES = 16 * 1024  # a TLS record
_GOODBYE_S = 5.0
# Maximum number of handshakes in progress (each takes about 70 KB), how many begin before the event loop
# serves other connections, and the time limit of each in seconds.
_UNDER_WAY = 1000
_AT_ONCE = 4
_LONGEST_S = 10.0
_TLS_BEGINS = b"\x16\x80"  # first byte of a handshake, and of SSL 2, which TLS rejects


class Handshakes:
    """Begins a few handshakes at a time, in turn for all clients."""

    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates
        self._turns: Turns[Handshake] = Turns(_UNDER_WAY)
        self._is_beginning = False

    @property
    def context(self) -> ssl.SSLContext:
        """The context with the current certificate."""
        return self._certificates.context

    def wait(self, handshake: "Handshake") -> None:
        """Begin the handshake when it is its client's turn."""
        self._turns.add(handshake.client, handshake)
        self._begin(handshake.loop)

    def leave(self, handshake: "Handshake") -> None:
        """The handshake no longer waits."""
        self._turns.withdraw(handshake.client, handshake)

    def ended(self, handshake: "Handshake") -> None:
        """The handshake is done or has failed."""
        self._turns.give_back(handshake.client)
        self._begin(handshake.loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._is_beginning:
            self._is_beginning = True
            loop.call_soon(self._begin_some, loop)

    def _begin_some(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_beginning = False
        for _ in range(_AT_ONCE):
            turn = self._turns.take()
            if turn is None:
                return
            turn[1].begin()
        self._begin(loop)


class Handshake(asyncio.Protocol):
    """One connection before its TLS handshake is done."""

    def __init__(self, connection: Connection, handshakes: Handshakes) -> None:
        self._connection = connection
        self._handshakes = handshakes
        self._greeting = b""
        self.loop = connection.loop
        self.client = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection. It has as much time as the head of a request."""
        self._transport = transport
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]
        self._connection.accepted(transport)
        self.client = client_of(self._connection.address)
        self._until = self.loop.time() + self._connection.head_timeout_s
        self._timer = self.loop.call_at(self._until, transport.abort)
        if self._connection.one_too_many(_TOLD):
            metrics.REFUSALS.labels(Overloaded.slug).inc()
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The client sent nothing, or its turn did not come."""
        self._handshakes.leave(self)
        self.end()

    def data_received(self, data: bytes) -> None:
        """The first bytes: TLS, or a client that does not use TLS."""
        if data[0] not in _TLS_BEGINS:
            self._timer.cancel()
            self._transport.set_protocol(self._connection)
            self._connection.connection_made(self._transport)
            self._connection.refuse(
                UnreadableRequest(
                    "this port only accepts HTTPS, but the client did not use TLS; use https://"
                )
            )
            return
        self._greeting = data
        self._transport.pause_reading()
        self._handshakes.wait(self)

    def begin(self) -> None:
        """Begin the handshake: it is its turn."""
        self._timer.cancel()
        done = self.loop.create_future()
        done.add_done_callback(self._done)
        left_s = max(0.001, min(_LONGEST_S, self._until - self.loop.time()))
        tls = _Tls(self._connection, self._handshakes.context, done, left_s, self.end)
        self._transport.set_protocol(tls)
        tls.connection_made(self._transport)
        tls.get_buffer(len(self._greeting))[: len(self._greeting)] = self._greeting
        tls.buffer_updated(len(self._greeting))
        self._transport.resume_reading()

    def _done(self, done: asyncio.Future[None]) -> None:
        # Retrieve the exception, so that asyncio does not log it; the connection is lost then.
        done.exception()
        self._handshakes.ended(self)

    def end(self) -> None:
        """The connection has ended."""
        self._timer.cancel()
        self._connection.forgotten()


class _Tls(SSLProtocol):
    """asyncio's TLS, which also reports when the connection is lost and when the client reads again."""

    max_size = _READ_BYTES

    def __init__(
        self,
        connection: Connection,
        context: ssl.SSLContext,
        done: asyncio.Future[None],
        within_s: float,
        lost: Callable[[], None],
    ) -> None:
        super().__init__(
            connection.loop,
            connection,
            context,
            done,
            server_side=True,
            ssl_handshake_timeout=within_s,  # type: ignore[arg-type]
            ssl_shutdown_timeout=_GOODBYE_S,
        )
        self._connection = connection
        self._lost = lost

    def connection_lost(self, exc: BaseException | None) -> None:
        """Report it."""
        super().connection_lost(exc)
        self._lost()

    def pause_writing(self) -> None:
        """The client reads more slowly than the answer is written."""
        super().pause_writing()
        self._connection.unread()

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self._connection.read()


def tls_protocol(connection: type[Connection], certificates: Certificates) -> Callable[..., asyncio.Protocol]:
    """The protocol factory, for uvicorn.Config's ``http``."""

    handshakes = Handshakes(certificates)

    def factory(**arguments: Any) -> asyncio.Protocol:
        return Handshake(connection(**arguments), handshakes)

    return factory
