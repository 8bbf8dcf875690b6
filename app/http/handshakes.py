"""Connections to the HTTPS port until TLS is agreed on: counted, timed, and small until the client speaks.

asyncio's own listener makes a TLS object and a buffer of 256 KiB for every connection before its first byte,
tells nobody of it until the handshake is done, and closes a client that speaks plain HTTP without a word.
"""

import asyncio
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from typing import Any

from app import metrics
from app.errors import Overloaded, UnreadableRequest
from app.http.connections import Connection
from app.tls import Certificates

# One connection too many is told so, which takes a handshake. So many beyond are not.
_TOLD = 100
_READ_BYTES = 16 * 1024  # a TLS record
_GOODBYE_S = 5.0
_TLS_BEGINS = b"\x16\x80"  # a handshake's first byte, and that of SSL 2, which TLS refuses


class Handshake(asyncio.Protocol):
    """One connection before TLS is agreed on."""

    def __init__(self, connection: Connection, certificates: Certificates) -> None:
        self._connection = connection
        self._certificates = certificates
        self._loop = connection.loop

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it; it has as long as a request's head."""
        self._transport = transport
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]
        self._connection.accepted(transport)
        self._until = self._loop.time() + self._connection.head_timeout_s
        self._timer = self._loop.call_at(self._until, transport.abort)
        if self._connection.one_too_many(_TOLD):
            metrics.REFUSALS.labels(Overloaded.slug).inc()
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """It never spoke."""
        self.end()

    def data_received(self, data: bytes) -> None:
        """The first bytes: TLS, or a client that took this for a port without it."""
        self._timer.cancel()
        if data[0] not in _TLS_BEGINS:
            self._transport.set_protocol(self._connection)
            self._connection.connection_made(self._transport)
            self._connection.refuse(
                UnreadableRequest(
                    "this port speaks HTTPS only, and the client began without TLS; use https://"
                )
            )
            return
        left_s = max(0.001, self._until - self._loop.time())
        tls = _Tls(self._connection, self._certificates, left_s, self.end)
        self._transport.set_protocol(tls)
        tls.connection_made(self._transport)
        tls.get_buffer(len(data))[: len(data)] = data
        tls.buffer_updated(len(data))

    def end(self) -> None:
        """The connection is gone."""
        self._timer.cancel()
        self._connection.forgotten()


class _Tls(SSLProtocol):
    """asyncio's TLS, that says when the connection is lost, and when the client reads on."""

    max_size = _READ_BYTES

    def __init__(
        self, connection: Connection, certificates: Certificates, within_s: float, lost: Callable[[], None]
    ) -> None:
        super().__init__(
            connection.loop,
            connection,
            certificates.context,
            None,  # type: ignore[arg-type]
            server_side=True,
            ssl_handshake_timeout=within_s,  # type: ignore[arg-type]
            ssl_shutdown_timeout=_GOODBYE_S,
        )
        self._connection = connection
        self._lost = lost

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell of it."""
        super().connection_lost(exc)
        self._lost()

    def pause_writing(self) -> None:
        """The client reads more slowly than is written."""
        super().pause_writing()
        self._connection.unread()

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        self._connection.read()


def tls_protocol(connection: type[Connection], certificates: Certificates) -> Callable[..., asyncio.Protocol]:
    """The protocol factory, for uvicorn.Config's ``http``."""

    def factory(**arguments: Any) -> asyncio.Protocol:
        return Handshake(connection(**arguments), certificates)

    return factory
