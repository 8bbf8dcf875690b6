"""Sends an answer's head and body in one piece.

uvicorn writes them one after the other, and each is sent at once: two system calls, two packets, and a client
that is woken twice. For an answer with little other work, such as a refusal, that is two fifths of its whole
cost.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any


class JoinedWrites:
    """A transport that holds back what is written until more follows, but at most until the next turn of the
    event loop. All else goes to the transport behind it. ``unread``: whether bytes still wait for the client.
    Then closing waits, too, because TLS would cut off after a while what is not read by then."""

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        unread: Callable[[], bool] = lambda: False,
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._unread = unread
        self._held = b""
        self._closing = False
        self._ended = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write the data together with what is held, or hold it. After the end of writing it is dropped: a
        route may still answer a request that was refused while its body arrived."""
        if self._ended:
            return
        if self._held:
            data, self._held = self._held + data, b""
            self._transport.write(data)
        elif data:
            self._held = data
            self._loop.call_soon(self._flush)

    def write_eof(self) -> None:
        """Close the sending side once all is written."""
        self._flush()
        self._ended = True
        with contextlib.suppress(OSError):  # the client has disconnected
            self._transport.write_eof()

    def close(self) -> None:
        """Close once all is written, and read."""
        self._flush()
        self._closing = True
        if not self._unread():
            self._transport.close()

    def drained(self) -> None:
        """All has been read. (The transport that calls this is in the middle of its work.)"""
        if self._closing:
            self._loop.call_soon(self._transport.close)

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._closing or self._transport.is_closing()

    def abort(self) -> None:
        """Close at once."""
        self._held = b""
        self._transport.abort()

    def _flush(self) -> None:
        if self._held:
            data, self._held = self._held, b""
            self._transport.write(data)
