"""Clients that read slowly, and those that do not."""

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from app.http.server.patience import Patience
from app.http.server.traffic import SLOWEST_BYTES_PER_S
from app.settings.settings import Settings
from tests.app.http.wire import Wire, wire
from tests.app.security.test_tls import self_signed

SIZE = 12_000_000
CLOSE = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
STAY = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@given(steps=st.lists(st.floats(0.01, 1), max_size=50))
def test_who_reads_at_the_slowest_rate_has_time_without_end(steps: list[float]) -> None:
    """Whatever the steps in which it is looked at."""
    patience = Patience(2, 2)
    assert all(patience.goes_on(step, int(step * SLOWEST_BYTES_PER_S) + 1) for step in steps)


@given(read=st.integers(0, 10**9))
def test_who_stands_still_has_its_time_and_no_more(read: int) -> None:
    """However much it read before: nothing is saved up."""
    patience = Patience(2, 2)
    patience.goes_on(0.5, read)
    assert patience.goes_on(1.4, 0) or read < SLOWEST_BYTES_PER_S
    assert not patience.goes_on(0.7, 0)


def test_a_byte_now_and_then_is_no_progress() -> None:
    """It delays the end by next to nothing."""
    patience = Patience(2, 2)
    steps = 0
    while patience.goes_on(0.5, 1):
        steps += 1
    assert steps <= 4


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with many bytes in one piece."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    head = [(b"content-length", str(SIZE).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": bytes(SIZE)})


@pytest.fixture(scope="module", params=["plain", "TLS"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    """A server that gives a reader one second."""
    folder = tmp_path_factory.mktemp("server")
    files = self_signed(folder) if request.param == "TLS" else Settings()
    settings = Settings(
        write_timeout_s=1, keep_alive_s=1, tls_certificate=files.tls_certificate, tls_key=files.tls_key
    )
    with wire(settings, large) as running:
        yield running


def connected(server: Wire, folder: Path, secure: bool) -> socket.socket:
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    plain.settimeout(30)
    plain.connect(("127.0.0.1", server.port))
    if not secure:
        return plain
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(plain)


@pytest.fixture
def connection(server: Wire, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with connected(server, tmp_path, "TLS" in request.node.name) as made:
        yield made


@pytest.mark.parametrize("asked", [CLOSE, STAY], ids=["close", "keep-alive"])
def test_an_answer_that_is_read_slowly_but_steadily_is_delivered(
    connection: socket.socket, asked: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Though it takes many times what a client may stand still for, and the connection ends after it."""
    connection.sendall(asked)
    began, received = time.monotonic(), 0
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += len(part)
            # A megabyte and a half a second.
            time.sleep(max(0.0, began + received / 1.5e6 - time.monotonic()))
    assert received > SIZE
    assert time.monotonic() - began > 7
    assert caplog.text == "", "there was no internal error"


@pytest.mark.parametrize("asked", [CLOSE, STAY], ids=["close", "keep-alive"])
def test_an_answer_that_is_not_read_is_given_up(connection: socket.socket, asked: bytes) -> None:
    """Also where a byte is read now and then."""
    connection.sendall(asked)
    for _ in range(8):
        time.sleep(0.5)
        connection.recv(1)
    received = 0
    with suppress(ConnectionResetError, ssl.SSLError):
        while part := connection.recv(65536):
            received += len(part)
    assert received < SIZE
