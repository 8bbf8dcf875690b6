"""Accepts connections from a listener, in turn for all clients.

asyncio's own listener takes up to 2,048 connections from the kernel's queue at once, in the order of their
arrival, and creates a transport and a protocol for each, which takes 0.2 ms. A client behind another one with
thousands of connections waits for all of them. Here, taking a connection takes some microseconds, and only a
few are set up per turn of the event loop: one of each client, then the next of each.
"""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Iterator

from app.http.clients import client_of
from app.processes import background
from app.turns import Turns

log = logging.getLogger(__name__)

_KERNEL_HOLDS = 2048
# Limits per turn of the event loop, and the maximum number of accepted connections that are not set up yet.
_TAKEN_AT_ONCE, _SET_UP_AT_ONCE, _MOST_HELD = 512, 16, 4096
_PAUSE_S = 1.0  # while there are no resources for another connection
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Accepts connections of a listening socket until it is closed. ``protocol`` creates a protocol for each.

    It replaces uvicorn's asyncio.Server.
    """

    def __init__(self, listener: socket.socket, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._listener = listener
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        # Only used for the order: places are given back immediately.
        self._held: Turns[socket.socket] = Turns(2)
        self._number = 0  # number of connections in `_held`
        self._news = asyncio.Event()
        self._reading = False
        self._closed = False
        listener.settimeout(0)
        listener.listen(_KERNEL_HOLDS)
        self._setting_up = background.kept(self._set_up_in_turn, "set up connections")
        self._read()

    def __repr__(self) -> str:
        return f"<Acceptor: {self._number} connections taken and not set up>"

    def close(self) -> None:
        """Take no more connections. Those that were taken are still set up."""
        self._closed = True
        self._pause()
        self._news.set()

    async def wait_closed(self) -> None:
        """Wait until all connections that were taken are set up."""
        await self._setting_up

    # --- off the kernel's queue ---------------------------------------------------------------------
    def _read(self) -> None:
        if not (self._closed or self._reading):
            self._reading = True
            self._loop.add_reader(self._listener, self._take)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._listener)

    def _take(self) -> None:
        for _ in range(_TAKEN_AT_ONCE):
            if self._number >= _MOST_HELD:
                self._pause()
                break
            try:
                connection, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                break
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                log.error("cannot accept connections, trying again in %g s: %s", _PAUSE_S, error.strerror)
                self._pause()
                self._loop.call_later(_PAUSE_S, self._read)
                break
            connection.settimeout(0)
            self._number += 1
            self._held.add(client_of(address[0] if isinstance(address, tuple) else ""), connection)
        self._news.set()

    # --- to the application -------------------------------------------------------------------------
    async def _set_up_in_turn(self) -> None:
        while True:
            await self._news.wait()
            taken = list(self._next())
            if taken:
                await asyncio.gather(*map(self._set_up, taken))
            elif self._closed:
                return
            else:
                self._news.clear()

    def _next(self) -> Iterator[socket.socket]:
        for _ in range(_SET_UP_AT_ONCE):
            turn = self._held.take()
            if turn is None:
                break
            client, connection = turn
            self._held.give_back(client)
            self._number -= 1
            yield connection
        if self._number < _MOST_HELD:
            self._read()

    async def _set_up(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client has disconnected
            await self._loop.connect_accepted_socket(self._protocol, connection)
