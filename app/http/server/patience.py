"""How long a client may take to read a waiting answer."""

import asyncio
import contextlib
import fcntl
import struct
import termios
from dataclasses import dataclass

from app.http.server.traffic import SLOWEST_BYTES_PER_S

_LOOKS = 4  # checks within the time that a client may stall
_LONGEST_STEP_S = 1.0


@dataclass(slots=True)
class Patience:
    """The time that is left to a client. It decreases while the client does not read and increases with what
    it reads, up to its initial value: a client that reads at the minimum rate keeps what it has. Pure."""

    most_s: float
    left_s: float

    def goes_on(self, seconds: float, taken: int) -> bool:
        """Whether time is left after ``seconds`` in which ``taken`` bytes were read."""
        self.left_s = min(self.most_s, self.left_s - seconds + taken / SLOWEST_BYTES_PER_S)
        return self.left_s > 0


class UnreadAnswer:
    """Watches a socket's transport while bytes wait in it, and aborts it if the client does not continue to
    read them. ``waits``: whether bytes wait."""

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, timeout_s: float
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._timeout_s = timeout_s
        self._step_s = min(_LONGEST_STEP_S, timeout_s / _LOOKS)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        """Whether bytes wait for the client."""
        return self._timer is not None

    def begin(self) -> None:
        """Bytes wait from now on."""
        if self._timer is None:
            self._patience = Patience(self._timeout_s, self._timeout_s)
            self._untaken = untaken(self._transport)
            self._timer = self._loop.call_later(self._step_s, self._look)

    def end(self) -> None:
        """No bytes wait any more, or the connection has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now = untaken(self._transport)
        if self._patience.goes_on(self._step_s, max(0, self._untaken - now)):
            self._untaken = now
            self._timer = self._loop.call_later(self._step_s, self._look)
        else:
            self._timer = None
            self._transport.abort()


def untaken(transport: asyncio.Transport) -> int:
    """The bytes that the client's machine has not received: those in this process, and those in the kernel,
    which takes and sends in pieces of a megabyte."""
    queued = 0
    with contextlib.suppress(OSError, ValueError):
        # This fails if the socket is closed, or if the system does not provide this information.
        answer = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        (queued,) = struct.unpack("i", answer)
    return transport.get_write_buffer_size() + queued
