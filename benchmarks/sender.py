"""A lightweight HTTP load generator: one thread, non-blocking sockets and prebuilt requests. It must use
little CPU time, because it shares the cores with the server that it measures.
"""

import re
import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

# Large enough to pass most photographs to the kernel in one call.
_SEND_BUFFER = 2**18
_READ = 2**16
JPEG = {"Content-Type": "image/jpeg"}
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Ended:
    """A finished image: its status (0: no response), and its due and end times in seconds since the start."""

    status: int
    due_s: float
    done_s: float


def requests(path: str, bodies: Sequence[bytes], headers: Mapping[str, str] = JPEG) -> list[bytes]:
    """Build a complete POST request for each body."""
    named = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{named}Content-Length: ".encode()
    return [head + str(len(each)).encode() + b"\r\n\r\n" + each for each in bodies]


@dataclass(slots=True, eq=False)
class _Connection:
    """A keep-alive connection and its current request. ``due_s``: None while it is idle."""

    socket: socket.socket
    due_s: float | None = None
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    received: bytes = b""


class Sender:
    """Sends prebuilt ``requests`` to a port on this machine, one at a time per connection."""

    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self._port = port
        self._requests = requests
        self._numbers = count()
        self._poll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._started = 0.0
        self._ended: list[Ended] = []

    def closed_loop(self, clients: int, seconds: float) -> list[Ended]:
        """Run ``clients`` that send the next request as soon as the last one is answered. Returns the images
        that ended within ``seconds``."""
        self._begin()
        for _ in range(clients):
            self._send(self._connection(), 0.0)
        while (now := self._now()) < seconds:
            self._turn(seconds - now)
            while self._idle:
                self._send(self._idle.pop(), self._now())
        ended = self._ended
        self._close()
        return ended

    def open_loop(self, due: Iterator[float], seconds: float, at_once: int, patience_s: float) -> list[Ended]:
        """Send images at the ``due`` times, with at most ``at_once`` requests in flight. Others wait here;
        latencies count from the due time. After ``seconds``, wait up to ``patience_s`` for the remaining
        responses."""
        self._begin()
        waiting: deque[float] = deque()
        next_s = next(due)
        while (now := self._now()) < seconds + patience_s:
            while next_s <= min(now, seconds):
                waiting.append(next_s)
                next_s = next(due)
            while waiting and (self._idle or len(self._connections) < at_once):
                connection = self._idle.pop() if self._idle else self._connection()
                self._send(connection, waiting.popleft())
            if next_s > seconds and not waiting and len(self._idle) == len(self._connections):
                break
            until = next_s if next_s <= seconds else seconds + patience_s
            self._turn(max(0.0, until - self._now()))
        unanswered = [each.due_s for each in self._connections.values() if each.due_s is not None]
        ended = self._ended + [Ended(0, due_s, self._now()) for due_s in (*unanswered, *waiting)]
        self._close()
        return ended

    def _begin(self) -> None:
        self._started, self._ended = time.perf_counter(), []

    def _close(self) -> None:
        for connection in self._connections.values():
            connection.socket.close()
        self._connections, self._idle = {}, []

    def _now(self) -> float:
        return time.perf_counter() - self._started

    def _connection(self) -> _Connection:
        connected = socket.create_connection(("127.0.0.1", self._port))
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        connected.setblocking(False)  # noqa: FBT003
        connection = self._connections[connected.fileno()] = _Connection(connected)
        self._poll.register(connected, select.EPOLLIN)
        return connection

    def _send(self, connection: _Connection, due_s: float) -> None:
        request = self._requests[next(self._numbers) % len(self._requests)]
        connection.due_s, connection.received = due_s, b""
        connection.unsent = memoryview(request)
        self._send_on(connection)
        if connection.unsent:
            self._poll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)

    def _send_on(self, connection: _Connection) -> None:
        try:
            connection.unsent = connection.unsent[connection.socket.send(connection.unsent) :]
        except BlockingIOError:
            pass
        except OSError:  # the server has closed the connection; its response, if any, is read next
            connection.unsent = memoryview(b"")

    def _turn(self, timeout_s: float) -> None:
        """Wait until sockets are ready, and send or receive on them."""
        for number, events in self._poll.poll(timeout_s):
            connection = self._connections[number]
            if events & select.EPOLLOUT:
                self._send_on(connection)
                if not connection.unsent:
                    self._poll.modify(number, select.EPOLLIN)
                    self._idle_if_done(connection)
            if events & ~select.EPOLLOUT:
                self._receive(connection)

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost(connection)
            return
        connection.received += data
        if connection.due_s is not None and (status := _status(connection.received)) is not None:
            self._ended.append(Ended(status, connection.due_s, self._now()))
            connection.due_s = None
            self._idle_if_done(connection)

    def _idle_if_done(self, connection: _Connection) -> None:
        """Mark a connection as idle once it is answered and the request is sent completely. A response may
        arrive before that."""
        if connection.due_s is None and not connection.unsent:
            self._idle.append(connection)

    def _lost(self, connection: _Connection) -> None:
        if connection.due_s is not None:
            self._ended.append(Ended(0, connection.due_s, self._now()))
        elif connection in self._idle:
            self._idle.remove(connection)
        del self._connections[connection.socket.fileno()]
        connection.socket.close()


def _status(received: bytes) -> int | None:
    """Return the status of a response, or None if it is still incomplete."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return None
    length = _LENGTH.search(head)
    if length is None:
        raise ValueError(f"an answer without Content-Length: {head!r}")
    return int(head[9:12]) if len(body) >= int(length[1]) else None
