"""A client that has stopped sending may have disconnected, or may wait for its answer. Both look the same on
the network."""

import asyncio
import socket
from collections.abc import Callable

_FIRST_QUESTION_S, _NEXT_QUESTION_S = 0.5, 1.0
_CLOSED = 7  # TCP_CLOSE: the kernel's state of a TCP connection after a reset


class HalfClosed:
    """Probes repeatedly until `end`, and aborts a connection whose client has gone. ``ask`` sends something:
    if nobody is there to receive it, the client's machine resets the connection."""

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, ask: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._ask = ask
        self._timer = loop.call_later(_FIRST_QUESTION_S, self._question)

    def end(self) -> None:
        """Stop probing."""
        self._timer.cancel()

    def _question(self) -> None:
        if was_reset(self._transport):
            self._transport.abort()
            return
        self._ask()
        self._timer = self._loop.call_later(_NEXT_QUESTION_S, self._question)


def was_reset(transport: asyncio.Transport) -> bool:
    """Whether the other machine has reset the connection."""
    try:
        told = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    except (AttributeError, OSError):  # not Linux, or not a TCP connection
        return False
    return bool(told[0] == _CLOSED)
