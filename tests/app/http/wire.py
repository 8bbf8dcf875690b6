"""The application on a fake dispatcher behind real sockets, in a thread of the test's own process: quick to
start, and what goes over the line is what clients see."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from starlette.types import ASGIApp

from app.http.server.listeners import Server, main_config
from app.http.server.traffic import Traffic
from app.main import create_app
from app.settings.settings import Settings
from tests.app.fakes import FakeDispatch

WITHIN_S = 30.0


@dataclass(frozen=True)
class Wire:
    """A server that listens, and ways to talk to it in bytes."""

    port: int
    dispatch: FakeDispatch
    loop: asyncio.AbstractEventLoop

    def do(self, what: Callable[[], object]) -> None:
        """Have it done where the server runs."""
        self.loop.call_soon_threadsafe(what)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=WITHIN_S)

    def say(self, *parts: bytes) -> bytes:
        """What the server sends, until it closes, to these parts, each in a segment of its own."""
        with self.connect() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(BrokenPipeError, ConnectionResetError):
                for part in parts:
                    connection.sendall(part)
            return everything(connection)


@dataclass(frozen=True)
class Said:
    """One answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def detail(self) -> str:
        """The words of a problem document."""
        assert self.headers["content-type"] == "application/problem+json", self
        document = json.loads(self.body)
        assert document["status"] == self.status
        text: str = document["detail"]
        return text


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    parts = []
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def answers(said: bytes) -> list[Said]:
    """The answers in what was said, each with a Content-Length."""
    found = []
    while said:
        head, _, rest = said.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split()[1])
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", 0))
        found.append(Said(status, headers, rest[:length]))
        said = rest[length:]
    return found


def answer(said: bytes) -> Said:
    """The only answer in what was said."""
    (found,) = answers(said)
    return found


@contextmanager
def wire(settings: Settings | None = None, app: ASGIApp | None = None) -> Iterator[Wire]:
    """A server with these settings on a free port, stopped at the end; of another application, if given."""
    settings = settings or Settings()
    dispatch = FakeDispatch()
    traffic = Traffic()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)  # noqa: FBT003
        port = listener.getsockname()[1]
        app = app or create_app(settings, dispatch, traffic=traffic, listening_on=settings.host)
        server = Server(main_config(app, settings), traffic)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve(sockets=[listener])))
        thread.start()
        try:
            yield Wire(port, dispatch, loop)
        finally:
            server.should_exit = True
            thread.join(WITHIN_S)
            assert not thread.is_alive()
            loop.close()
