"""A worker's connection to the dispatcher. Any thread may send; one thread receives."""

import select
import socket
import threading
from pathlib import Path

from app.messages import to_dispatcher, to_worker
from app.messages.frames import FrameReader, framed
from app.messages.to_dispatcher import ToDispatcher
from app.messages.to_worker import ToWorker

_READ_BYTES = 2**18


class Gone(Exception):
    """There is no dispatcher, or its connection has ended."""


class Connection:
    """One connection, which is opened at once. Raises Gone."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._frames = FrameReader()
        self._read = memoryview(bytearray(_READ_BYTES))  # one buffer for all received data
        self._sending = threading.Lock()
        try:
            self._socket.connect(str(path))
        except (FileNotFoundError, ConnectionError) as error:
            self._socket.close()
            raise Gone(str(error)) from error

    def send(self, message: ToDispatcher) -> None:
        """Send a message. Raises Gone."""
        data = framed(to_dispatcher.encode(message))
        with self._sending:
            try:
                self._socket.sendall(data)
            except OSError as error:
                raise Gone(str(error)) from error

    def receive(self, woken: socket.socket, within_s: float) -> list[ToWorker]:
        """The messages that have arrived. Empty if ``woken`` has data, or nothing has arrived in time. Raises
        Gone, and msgspec.DecodeError or NoFrame for invalid messages."""
        ready, _, _ = select.select([self._socket, woken], [], [], within_s)
        if self._socket not in ready:
            return []
        try:
            size = self._socket.recv_into(self._read)
        except OSError as error:
            raise Gone(str(error)) from error
        if not size:
            raise Gone("the dispatcher closed the connection")
        return [to_worker.decode(frame) for frame in self._frames.feed(self._read[:size])]

    def close(self) -> None:
        """End it."""
        self._socket.close()
