"""Connections taken off a listener, clients in turn, with real sockets."""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from app.http.server.accepting import Acceptor


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        yield listening


class Accepted(asyncio.Protocol):
    """Writes down from where it was connected."""

    order: asyncio.Queue[str]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.order.put_nowait(transport.get_extra_info("peername")[0])


def connect(listener: socket.socket, source: str) -> socket.socket:
    return socket.create_connection(listener.getsockname(), source_address=(source, 0))


async def accepted(listener: socket.socket, number: int) -> list[str]:
    """Whose connections are set up, in order, until there are so many."""
    Accepted.order = asyncio.Queue()
    acceptor = Acceptor(listener, Accepted)
    async with asyncio.timeout(30):
        order = [await Accepted.order.get() for _ in range(number)]
    acceptor.close()
    await acceptor.wait_closed()
    return order


def test_who_comes_behind_a_clients_many_does_not_wait_for_them(listener: socket.socket) -> None:
    """Of 400 connections of one client and one of another behind them, the other's is among the first."""
    with ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(connect(listener, "127.0.0.1"))
        stack.enter_context(connect(listener, "127.0.0.2"))
        order = asyncio.run(accepted(listener, 401))
    assert order.index("127.0.0.2") <= 2
    assert order.count("127.0.0.1") == 400


def test_what_was_taken_before_the_end_is_set_up(listener: socket.socket) -> None:
    """A client whose connection was accepted is not reset."""

    async def closed_at_once() -> None:
        Accepted.order = asyncio.Queue()
        acceptor = Acceptor(listener, Accepted)
        acceptor._take()
        acceptor.close()
        await acceptor.wait_closed()

    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connect(listener, "127.0.0.1"))
        asyncio.run(closed_at_once())
    assert Accepted.order.qsize() == 50


def test_without_room_for_a_connection_it_is_tried_again(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process with too many open files says so, and accepts when there are fewer."""
    monkeypatch.setattr("app.http.server.accepting._PAUSE_S", 0.05)

    class Full:
        """The listener, with no room at first."""

        tries = 0

        def __getattr__(self, name: str) -> object:
            return getattr(listener, name)

        def accept(self) -> object:
            self.tries += 1
            if self.tries == 1:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return listener.accept()

    with connect(listener, "127.0.0.1"):
        assert asyncio.run(accepted(Full(), 1)) == ["127.0.0.1"]  # type: ignore[arg-type]
    assert "cannot accept connections, trying again in 0.05 s: Too many open files" in caplog.text
