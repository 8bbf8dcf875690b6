"""The dispatcher's sockets: one Unix socket to which front ends and workers connect, and the loop that waits
for all of them."""

import contextlib
import logging
import math
import selectors
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from app.dispatch.dispatcher import Dispatcher
from app.dispatch.fleet import Unexpected
from app.dispatch.outbox import Parcel
from app.messages import to_dispatcher
from app.messages.frames import FrameReader, NoFrame, framed
from app.processes import background
from app.processes.heartbeat import Beat, Heartbeat
from app.telemetry.rarely import Rarely

log = logging.getLogger(__name__)

_READ_BYTES = 2**18
_MOST_UNREAD_BYTES = 2**20  # a peer with this much unsent data gets no messages that are repeated soon anyway
_BEAT_EVERY_S = 0.1  # minimum interval; a turn takes half a second at most
_NO_ROOM_S = 0.05  # between attempts to accept a connection while resources are exhausted


@dataclass(slots=True)
class _Peer:
    number: int
    socket: socket.socket
    frames: FrameReader = field(default_factory=FrameReader)
    unsent: bytearray = field(default_factory=bytearray)
    waits_to_send: bool = False


class Server:
    """Runs a dispatcher at that path until `stop`, and until everything that was accepted has had its
    outcome.

    Raises OSError if the path cannot be listened on.
    """

    def __init__(self, dispatcher: Dispatcher, path: Path, heartbeat: Heartbeat | None = None) -> None:
        self._dispatcher = dispatcher
        self._heartbeat = heartbeat
        self._selector = selectors.DefaultSelector()
        self._read = memoryview(bytearray(_READ_BYTES))  # one buffer for all received data
        self._peers: dict[int, _Peer] = {}
        self._accepted = 0
        self._invalid_messages = Rarely()
        self._stopping = False
        self._dropped = False  # a peer was lost since the last turn, which may change the schedule
        path.unlink(missing_ok=True)  # left by a previous process
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(128)
        self._woken, self._waker = socket.socketpair()
        for one in (self._listener, self._woken):
            one.setblocking(False)  # noqa: FBT003
            self._selector.register(one, selectors.EVENT_READ)

    def stop(self) -> None:
        """Finish what was accepted, then return from `run`. Can be called in a signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._waker.send(b"!")

    def run(self) -> None:
        """Serve."""
        turns, wait_s, beaten = 0, 0.0, -math.inf
        try:
            while not (self._stopping and self._dispatcher.idle):
                for key, events in self._selector.select(0.0 if self._dropped else wait_s):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj is self._woken:
                        self._woken.recv(4096)
                    elif (peer := self._peers.get(key.data)) is not None:
                        self._serve(peer, events)
                self._dropped = False
                now = time.monotonic()
                wait_s = self._dispatcher.turn(now, stopping=self._stopping)
                for parcel in self._dispatcher.outbox.take():
                    self._send(parcel)
                turns += 1
                if self._heartbeat is not None and now > beaten + _BEAT_EVERY_S:
                    beaten = now
                    self._heartbeat.write(Beat(turns, ready=True))
            self._dispatcher.turn(time.monotonic(), stopping=True)  # write the last counts
        finally:
            self._close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # for example too many open files; it is tried again
            background.incident("accept of a peer", error)
            time.sleep(_NO_ROOM_S)
            return
        connection.setblocking(False)  # noqa: FBT003
        self._accepted += 1
        self._peers[self._accepted] = _Peer(self._accepted, connection)
        self._selector.register(connection, selectors.EVENT_READ, self._accepted)

    def _serve(self, peer: _Peer, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush(peer)
        if not events & selectors.EVENT_READ or peer.number not in self._peers:
            return
        try:
            size = peer.socket.recv_into(self._read)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self._drop(peer)
            return
        now = time.monotonic()
        try:
            for frame in peer.frames.feed(self._read[:size]):
                try:
                    message = to_dispatcher.decode(frame)
                except msgspec.DecodeError as error:
                    self._log_invalid(error)
                else:
                    self._dispatcher.received(peer.number, message, now)
        except (NoFrame, Unexpected) as error:
            self._log_invalid(error)
            self._drop(peer)

    def _log_invalid(self, error: Exception) -> None:
        if (left_out := self._invalid_messages.due(time.monotonic())) is not None:
            log.error(
                "invalid message from another process: %s (%d similar messages suppressed)", error, left_out
            )

    def _send(self, parcel: Parcel) -> None:
        peer = self._peers.get(parcel.peer)
        if peer is None or (parcel.passing and len(peer.unsent) > _MOST_UNREAD_BYTES):
            return
        waits = bool(peer.unsent)
        peer.unsent += framed(parcel.data)
        if not waits:
            self._flush(peer)

    def _flush(self, peer: _Peer) -> None:
        """Send what the peer accepts now. The rest follows when it reads."""
        try:
            sent = peer.socket.send(peer.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(peer)
            return
        del peer.unsent[:sent]
        if peer.waits_to_send != bool(peer.unsent):
            peer.waits_to_send = bool(peer.unsent)
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.unsent else 0)
            self._selector.modify(peer.socket, events, peer.number)

    def _drop(self, peer: _Peer) -> None:
        self._dropped = True
        del self._peers[peer.number]
        self._selector.unregister(peer.socket)
        peer.socket.close()
        self._dispatcher.gone(peer.number)

    def _close(self) -> None:
        for peer in self._peers.values():
            with contextlib.suppress(OSError):  # unread data is lost when the process ends
                peer.socket.setblocking(True)  # noqa: FBT003
                peer.socket.settimeout(2.0)
                peer.socket.sendall(peer.unsent)
            peer.socket.close()
        for one in (self._listener, self._woken, self._waker):
            one.close()
        self._selector.close()
