"""Clients that are slow, silent, greedy or many, and clients that are merely clever, with real sockets."""

import json
import re
import select
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.system.faulty import faulty_server, picture
from tests.system.server import CLIENT, Server, wait_until

WITHIN_S = 60.0


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that waits for nobody for long."""
    limits = (
        "--head-timeout-s",
        "1",
        "--body-timeout-s",
        "1",
        "--write-timeout-s",
        "1",
        "--keep-alive-s",
        "1",
    )
    with faulty_server(tmp_path_factory.mktemp("hasty"), *limits) as server:
        yield server


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=WITHIN_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def post(body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [
        "POST /v1/classify HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def all_that_comes(connection: socket.socket) -> bytes:
    """What the server sends until it closes."""
    parts = []
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def trickle(connection: socket.socket, piece: Callable[[], bytes], every_s: float = 0.05) -> bytes:
    """Send pieces until the server has had enough; what it says."""
    until = time.monotonic() + WITHIN_S
    connection.settimeout(every_s)
    with suppress(BrokenPipeError, ConnectionResetError):
        while time.monotonic() < until:
            connection.sendall(piece())
            try:
                said = connection.recv(65536)
            except TimeoutError:
                continue
            connection.settimeout(WITHIN_S)
            return said + all_that_comes(connection)
        pytest.fail("the server went on reading")
    connection.settimeout(WITHIN_S)
    return all_that_comes(connection)


def assert_refused(said: bytes, status: int, slug: str) -> None:
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), said
    assert b"application/problem+json" in head
    assert json.loads(body)["type"] == f"urn:trimvit:problem:{slug}"


def test_a_connection_without_a_request_is_closed(hasty: Server) -> None:
    """Silence, and line ends that are no request."""
    with connect(hasty) as silent, connect(hasty) as idle:
        assert trickle(idle, lambda: b"\r\n") == b""
        assert all_that_comes(silent) == b""


def test_a_head_that_trickles_is_given_up(hasty: Server) -> None:
    """408, however regularly its bytes come; also for the second request of a connection."""
    with connect(hasty) as first:
        first.sendall(b"GET /livez HTTP/1.1\r\nX-Slow: ")
        assert_refused(trickle(first, lambda: b"x"), 408, "too-slow")
    with connect(hasty) as second:
        second.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        said = b""
        while not said.endswith(b'{"status":"alive"}'):  # head and body may come one after the other
            said += second.recv(65536)
        assert said.startswith(b"HTTP/1.1 200 ")
        second.sendall(b"GET /livez HTTP/1.1\r\nX-Slow: ")
        assert_refused(trickle(second, lambda: b"x"), 408, "too-slow")


def test_a_body_that_trickles_is_given_up(hasty: Server) -> None:
    """408 too, and the connection does not stay open for what may still come."""
    with connect(hasty) as connection:
        connection.sendall(post(b"", length=1_000_000))
        assert_refused(trickle(connection, lambda: b"x"), 408, "too-slow")


def test_a_half_open_connection_is_given_up(hasty: Server) -> None:
    """A client that vanished in the middle of its body takes nothing with it for long."""
    with connect(hasty) as connection:
        connection.sendall(post(b"x" * 1000, length=1_000_000))
        assert_refused(all_that_comes(connection), 408, "too-slow")


@pytest.mark.parametrize(
    "flood",
    [b"X-Flood: " + b"x" * 50 + b"\r\n", b"x" * 100, b"X:\r\n"],
    ids=["many headers", "one header without end", "empty headers"],
)
def test_headers_without_end_are_cut_off(hasty: Server, flood: bytes) -> None:
    """431, before they have cost memory worth speaking of."""
    with connect(hasty) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nX-First: ")
        said = trickle(connection, lambda: flood * 200, every_s=0.001)
    assert said == b"" or said.startswith(b"HTTP/1.1 431 ")  # a reset may be faster than the answer
    assert hasty.metric("trimvit_refusals_total", reason="headers-too-large") >= 1


def test_trailers_without_end_are_cut_off(hasty: Server) -> None:
    """What comes behind a chunked body counts as well."""
    head = (
        b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    )
    with connect(hasty) as connection:
        connection.sendall(head)
        sent = 0

        def trailer() -> bytes:
            nonlocal sent
            sent += 20_000
            return b"X-Flood: " + b"x" * 19_989 + b"\r\n"

        trickle(connection, trailer, every_s=0.001)
    assert sent < 10_000_000


def test_a_client_that_does_not_read_is_given_up(hasty: Server) -> None:
    """Its answers do not pile up: the connection is cut, and the process keeps its size."""
    (front,) = hasty.processes("trimvit: http")
    before = front.memory_info().rss
    with connect(hasty) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        local = connection.getsockname()
        connection.settimeout(1)
        request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with suppress(TimeoutError, ConnectionError):
            for _ in range(2000):
                connection.sendall(request * 10)
        wait_until(
            lambda: all(other.raddr != local for other in front.net_connections("tcp")),
            "the connection to be cut",
        )
    assert front.memory_info().rss < before + 50e6


def test_pipelined_requests_are_answered_in_order(hasty: Server) -> None:
    """Ten images sent at once on one connection, in pieces that fit no message."""
    requests = b"".join(post(picture(), f"X-Request-ID: number-{number}") for number in range(10))
    with connect(hasty) as connection:
        for start in range(0, len(requests), 97):
            connection.sendall(requests[start : start + 97])
        said = b""
        while said.count(b"timings_ms") < 10:
            part = connection.recv(65536)
            assert part, said
            said += part
    assert re.findall(rb"(?i)x-request-id: number-(\d)", said) == [b"%d" % number for number in range(10)]
    assert said.count(b"HTTP/1.1 200 ") == 10


def test_a_connection_is_kept_for_many_requests(hasty: Server) -> None:
    """Also after a refusal, whose body had been sent for nothing."""
    with httpx.Client(timeout=WITHIN_S) as client:
        ports = set()
        for _ in range(20):
            with client.stream("POST", f"{hasty.url}/v1/classify", content=picture()) as answer:
                answer.read()
                assert answer.status_code == 200
                ports.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
            assert client.post(f"{hasty.url}/v1/classify", content=b"no image" * 1000).status_code == 422
        assert len(ports) == 1


def test_no_more_connections_than_may_be(tmp_path: Path) -> None:
    """What is too much is told so; those that are there go on, and the place of one that leaves is free."""
    with faulty_server(tmp_path, "--max-connections", "20") as server, ExitStack() as stack:
        held = [stack.enter_context(connect(server)) for _ in range(20)]
        one_too_many = stack.enter_context(connect(server))
        said = all_that_comes(one_too_many)
        assert_refused(said, 503, "overloaded")
        assert b"Retry-After: 1" in said
        held[0].sendall(post(picture()))
        assert held[0].recv(65536).startswith(b"HTTP/1.1 200 ")
        held[1].close()

        def answered() -> bool:
            with suppress(httpx.TransportError):
                return CLIENT.post(f"{server.url}/v1/classify", content=picture()).status_code == 200
            return False

        wait_until(answered, "a free place")


def test_bodies_together_are_bounded(tmp_path: Path) -> None:
    """Many half-sent bodies do not take all memory: the one too many is refused with a time to come back."""
    with faulty_server(tmp_path, "--max-bodies-bytes", "1000000") as server, ExitStack() as stack:

        def half_sent() -> socket.socket:
            connection = stack.enter_context(connect(server))
            connection.sendall(post(b"x" * 300_000, length=400_000))
            return connection

        halves = [half_sent() for _ in range(3)]

        def refused() -> bool:
            for place, connection in enumerate(halves):
                if select.select([connection], [], [], 0)[0]:  # it came last, and was the one too many
                    halves[place] = half_sent()
            answer = CLIENT.post(f"{server.url}/v1/classify", content=b"x" * 300_000)
            return answer.status_code == 503 and answer.json()["type"].endswith("overloaded")

        wait_until(refused, "the bodies to have come")
        assert CLIENT.post(f"{server.url}/v1/classify", content=picture()).status_code == 200


def test_five_thousand_idle_connections_disturb_nobody(tmp_path: Path) -> None:
    """Others are answered beside them, and they cost little memory."""
    if psutil.Process().rlimit(psutil.RLIMIT_NOFILE)[0] < 6000:
        pytest.skip("this process may not open 6,000 files")
    with faulty_server(tmp_path, "--head-timeout-s", "600") as server, ExitStack() as stack:
        (front,) = server.processes("trimvit: http")
        before = front.memory_info().rss
        for _ in range(5000):
            stack.enter_context(connect(server))
        assert front.memory_info().rss < before + 100e6
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(
                lambda _: CLIENT.post(f"{server.url}/v1/classify", content=picture(), timeout=60), range(40)
            )
            assert [answer.status_code for answer in answers] == [200] * 40
        wait_until(lambda: len(front.net_connections("tcp")) >= 5000, "all to be accepted")


def stop_under_load(folder: Path) -> None:
    """SIGTERM while clients ask as fast as they can: each request is answered with 200, or refused with 503
    and a time to come back; the exit code is 0."""
    folder.mkdir()
    with faulty_server(folder, seconds_per_batch=0.1) as server, ThreadPoolExecutor(24) as pool:

        def ask_until_refused() -> tuple[int, list[httpx.Response]]:
            answered = 0
            while True:
                try:
                    answer = CLIENT.post(f"{server.url}/v1/classify", content=picture(), timeout=WITHIN_S)
                except httpx.ConnectError:  # the server has gone
                    return answered, []
                if answer.status_code != 200:
                    return answered, [answer]
                answered += 1

        clients = [pool.submit(ask_until_refused) for _ in range(24)]
        wait_until(lambda: server.metric("trimvit_images_total", outcome="answered") >= 24, "the load")
        server.supervisor.terminate()
        results = [client.result() for client in clients]
        assert server.supervisor.wait(200) == 0
        refusals = [answer for _, refused in results for answer in refused]
        assert refusals, "new requests were refused in words"
        for answer in refusals:
            assert answer.status_code == 503, answer.text
            assert answer.json()["type"] == "urn:trimvit:problem:not-ready"
            assert int(answer.headers["Retry-After"]) >= 1
            assert answer.headers["Connection"] == "close"


def test_sigterm_under_load_answers_or_refuses_every_request(tmp_path: Path) -> None:
    """No request is left without an answer."""
    stop_under_load(tmp_path / "once")


@pytest.mark.long
def test_sigterm_under_load_ten_times(tmp_path: Path) -> None:
    """Nor ever."""
    for number in range(10):
        stop_under_load(tmp_path / str(number))
