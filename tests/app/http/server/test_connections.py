"""What clients send, byte by byte, and what they are answered."""

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.http.server.listeners import main_config
from app.settings.settings import Settings
from tests.app.dispatch.rig import wait_for
from tests.app.fakes import encoded
from tests.app.http.wire import Wire, answer, answers, everything, wire
from tests.support.examples import examples

IMAGE = encoded()
PATH = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\n"
CLOSE = b"Connection: close\r\n\r\n"
CHUNKED = PATH + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
PLAIN = PATH + b"Content-Length: %d\r\n" % len(IMAGE) + CLOSE + IMAGE


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    """A server that waits for nobody for long."""
    with wire(Settings(head_timeout_s=5, body_timeout_s=5, keep_alive_s=1)) as running:
        yield running


def chunked(body: bytes, size: int = 100) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


OFFERS = {
    "Java's HttpClient": b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEA\r\nUpgrade: h2c\r\n",
    "curl --http2": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n",
    "WebSocket": b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "TLS": b"Connection: upgrade\r\nUpgrade: TLS/1.0\r\n",
    "several": b"Upgrade: foo/2, bar\r\nConnection: Upgrade\r\n",
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("pieces", ["one segment", "head and body apart", "small segments"])
def test_an_offer_of_another_protocol_is_ignored(
    server: Wire, offer: bytes, framing: str, pieces: str
) -> None:
    """The request is answered as HTTP/1.1 with its whole body, and the connection goes on."""
    if framing == "length":
        head, body = b"Content-Length: %d\r\n" % len(IMAGE), IMAGE
    else:
        head, body = b"Transfer-Encoding: chunked\r\n", chunked(IMAGE)
    head = PATH + head + offer + b"\r\n"
    whole = head + body
    parts = {
        "one segment": [whole],
        "head and body apart": [head, body],
        "small segments": [whole[start : start + 41] for start in range(0, len(whole), 41)],
    }[pieces]
    first, second = answers(server.say(*parts, PLAIN))
    assert first.status == second.status == 200
    assert "upgrade" not in first.headers
    assert first.body.partition(b"timings")[0] == second.body.partition(b"timings")[0]


def test_offers_on_pipelined_requests_are_ignored(server: Wire) -> None:
    """One behind the other, in one segment."""
    offered = GET + OFFERS["curl --http2"] + b"\r\n"
    said = answers(server.say(offered * 3 + GET + CLOSE))
    assert [(one.status, one.body) for one in said] == [(200, b'{"status":"alive"}')] * 4


@settings(max_examples=examples(15), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, 400), max_size=6, unique=True))
def test_it_does_not_matter_where_segments_end(server: Wire, cuts: list[int]) -> None:
    """Of a request with an offer, and the one behind it."""
    whole = (
        PATH + b"Content-Length: %d\r\n" % len(IMAGE) + OFFERS["Java's HttpClient"] + b"\r\n" + IMAGE + PLAIN
    )
    ends = [0, *sorted(cuts), len(whole)]
    parts = [whole[start:end] for start, end in pairwise(ends)]
    assert [one.status for one in answers(server.say(*parts))] == [200, 200]


REFUSED = {
    "HTTP/2 without TLS": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 400, "--http1.1"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400, "http:// instead of https://"),
    "PROXY protocol": (b"PROXY TCP4 10.0.0.1 10.0.0.2 5 80\r\n" + GET + CLOSE, 400, "--trusted-proxies"),
    "HTTP/0.9": (b"GET /livez\r\n", 400, "HTTP/1.1"),
    "HTTP/0.9 and an empty line": (b"GET /livez\r\n\r\n", 400, "HTTP/1.1"),
    "HTTP/1.2": (b"GET /livez HTTP/1.2\r\nHost: localhost\r\n\r\n", 400, "HTTP/1.1"),
    "HTTP/2.0": (b"GET /livez HTTP/2.0\r\nHost: localhost\r\n\r\n", 400, "HTTP/1.1"),
    "CONNECT": (b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n", 405, "not a proxy"),
    "unknown method": (b"BREW /pot HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "BREW"),
    "lower case": (b"get /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "upper case"),
    "bare LF": (b"GET /livez HTTP/1.1\nHost: localhost\n\n", 400, "CR LF"),
    "folded header": (GET + b"X-A: b\r\n  c\r\n\r\n", 400, "one line"),
    "blank in a name": (GET + b"X A: b\r\n\r\n", 400, "without spaces"),
    "blank before a colon": (GET + b"XA : b\r\n\r\n", 400, "without spaces"),
    "no colon": (GET + b"nonsense\r\n\r\n", 400, "Name: value"),
    "NUL": (GET + b"X-A: b\0c\r\n\r\n", 400, "control character"),
    "CR in a value": (GET + b"X-A: b\rX-B: c\r\n\r\n", 400, "one line"),
    "no host": (b"GET /livez HTTP/1.1\r\n\r\n", 400, "Host"),
    "two hosts": (GET + b"Host: other\r\n\r\n", 400, "more than one Host"),
    "two equal lengths": (PATH + b"Content-Length: 3\r\n" * 2 + b"\r\nabc", 400, "one Content-Length"),
    "two lengths": (PATH + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400, "one Content-Length"),
    "length of two": (PATH + b"Content-Length: 3, 3\r\n\r\nabc", 400, "decimal digits"),
    "length with a sign": (PATH + b"Content-Length: +3\r\n\r\nabc", 400, "decimal digits"),
    "length without end": (PATH + b"Content-Length: 99999999999999999999999\r\n\r\nabc", 400, "larger"),
    "length and chunks": (
        PATH + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "both Content-",
    ),
    "chunks and length": (
        PATH + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400, "both Content-",
    ),
    "gzip, chunked": (PATH + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400, "Content-Encoding"),
    "xchunked": (PATH + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400, "be 'chunked'"),
    "chunked twice": (PATH + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n", 400, "be 'chunked'"),
    "chunks of HTTP/1.0": (
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "use Content-Length",
    ),
    "chunk's size": (CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n", 400, "hexadecimal"),
    "chunk's size with 0x": (CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n", 400, "hexadecimal"),
    "chunk too long": (CHUNKED + b"2\r\nabc\r\n0\r\n\r\n", 400, "its announced size"),
    "chunk without end": (CHUNKED + b"f" * 18 + b"\r\n", 400, "hexadecimal"),
    "long target": (b"GET /" + b"x" * 65_600 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431, "at most 655"),
    "target beyond ASCII": ("GET /lïvez HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), 400, "%C3%BC"),
    "long head in one piece": (GET + b"X-A: " + b"a" * 66_000 + b"\r\n\r\n", 431, "at most 65536 bytes"),
    "many headers in one piece": (GET + b"X-A: b\r\n" * 9_000 + b"\r\n", 431, "at most 65536 bytes"),
    "query beyond ASCII": ("GET /livez?ü HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), 400, "%C3%BC"),
    "spaces in the path": (b"GET /li vez HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "%20"),
    "target without a slash": (b"GET livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "begin with /"),
    "expectation": (PATH + b"Content-Length: 3\r\nExpect: 200-ok\r\n\r\nabc", 417, "100-continue"),
    "an image and nothing else": (IMAGE, 400, "begins with its method"),
    "zeros": (bytes(100), 400, "begins with its method"),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "status", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_in_words(server: Wire, sent: bytes, status: int, words: str) -> None:
    """As a problem document that says what to do, at once, and the connection is closed."""
    refused = answer(server.say(sent))
    assert refused.status == status
    assert words in refused.detail
    assert refused.headers["connection"] == "close"


@pytest.mark.parametrize("bad", ["two hosts", "bare LF", "two lengths", "chunk's size", "expectation"])
def test_answers_before_a_bad_request_come_first(server: Wire, bad: str) -> None:
    """Requests that were sent before it on the connection are answered, and what follows it is not read."""
    sent, status, _ = REFUSED[bad]
    said = answers(server.say(PLAIN.replace(b"Connection: close\r\n", b"") * 2 + sent + GET + CLOSE))
    assert [one.status for one in said] == [200, 200, status]


def test_a_body_that_cannot_be_read_counts_with_the_status_that_was_sent(
    server: Wire, metric: Callable[..., float]
) -> None:
    """Not as a client that went away."""
    where = {"route": "/v1/classify", "method": "POST"}
    before = [metric("trimvit_requests_total", status=status, **where) for status in ("400", "499")]
    assert answer(server.say(*REFUSED["chunk's size"][0].partition(b"zz"))).status == 400

    def counted() -> list[float]:
        after = [metric("trimvit_requests_total", status=status, **where) for status in ("400", "499")]
        return [now - then for now, then in zip(after, before, strict=True)]

    wait_for(lambda: sum(counted()) == 1, "the request to be counted")
    assert counted() == [1, 0]


def test_a_request_that_was_answered_gets_no_second_answer(server: Wire) -> None:
    """A body that turns out bad after its request was refused closes the connection."""
    head = b"POST /livez HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    with server.connect() as connection:
        connection.sendall(head)
        said = connection.recv(65536)
        assert answer(said).status == 405
        connection.sendall(b"zz\r\n")
        assert everything(connection) == b""


ANSWERED = {
    "HTTP/1.0": b"GET /livez HTTP/1.0\r\n\r\n",
    "HTTP/1.0 that would stay": b"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "absolute target": b"GET http://localhost/livez HTTP/1.1\r\nHost: localhost\r\n" + CLOSE,
    "empty lines before": b"\r\n\r\n" + GET + CLOSE,
    "a body on GET": GET + b"Content-Length: 3\r\n" + CLOSE + b"abc",
    "Latin-1 in a header": GET + b"X-A: b\xe9c\r\n" + CLOSE,
    "capitals in Expect": GET + b"Expect: 100-Continue\r\n" + CLOSE,
}


@pytest.mark.parametrize("sent", ANSWERED.values(), ids=ANSWERED)
def test_what_is_merely_unusual_is_answered(server: Wire, sent: bytes) -> None:
    """Old clients, and proxies."""
    said = answer(server.say(sent))
    assert (said.status, said.body) == (200, b'{"status":"alive"}')


def test_chunks_may_have_extensions_and_trailers(server: Wire) -> None:
    """They are passed over."""
    body = b"%x;name=value\r\n%s\r\n0\r\nX-Checksum: 1\r\n\r\n" % (len(IMAGE), IMAGE)
    assert answer(server.say(PATH + b"Transfer-Encoding: chunked\r\n" + CLOSE + body)).status == 200


def test_a_refusal_reaches_a_client_that_is_still_sending(server: Wire) -> None:
    """The connection is not reset under it."""
    with server.connect() as connection:
        connection.sendall(REFUSED["two hosts"][0])
        time.sleep(0.1)
        for _ in range(20):
            connection.sendall(bytes(1000))
        connection.shutdown(socket.SHUT_WR)
        assert answer(everything(connection)).status == 400


def test_a_client_that_only_stops_sending_is_answered(server: Wire) -> None:
    """Every request that it sent before."""
    with server.connect() as connection:
        connection.sendall(PLAIN.replace(b"Connection: close\r\n", b"") * 3)
        connection.shutdown(socket.SHUT_WR)
        assert [one.status for one in answers(everything(connection))] == [200, 200, 200]


def test_a_client_that_stops_sending_in_the_middle_is_not_waited_for(server: Wire) -> None:
    """Its request can never be whole."""
    with server.connect() as connection:
        connection.sendall(PLAIN[:-10])
        connection.shutdown(socket.SHUT_WR)
        assert everything(connection) == b""


def test_a_client_that_goes_while_a_request_waits_behind_another_is_no_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The one that is being answered is withdrawn, though it is not the last that came."""
    request = PATH + b"Content-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE
    with wire() as server:
        server.dispatch.wait_for = asyncio.Event()
        with server.connect() as connection:
            connection.sendall(request * 2)
            wait_for(lambda: bool(server.dispatch.questions), "the first request")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_for(lambda: bool(server.dispatch.cancelled), "its end")
        assert len(server.dispatch.questions) == 1
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_client_that_waits_is_told_from_one_that_has_gone() -> None:
    """The first gets its answer, after interim ones; the other's image is given up."""
    never = asyncio.Event()
    with wire(Settings()) as server:
        server.dispatch.wait_for = never
        with server.connect() as gone, server.connect() as waiting:
            gone.sendall(PLAIN)
            waiting.sendall(PLAIN)
            waiting.shutdown(socket.SHUT_WR)
            until = time.monotonic() + 20
            while len(server.dispatch.questions) < 2:
                assert time.monotonic() < until
            gone.close()
            while server.dispatch.cancelled == 0:
                assert time.monotonic() < until
            assert waiting.recv(65536).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
            server.do(never.set)
            said = everything(waiting)
        assert answers(said)[-1].status == 200
        assert server.dispatch.cancelled == 1


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [(b"/livez", b"localhost", 405), (b"/v1/classify", b"evil.test", 421), (b"/nowhere", b"localhost", 404)],
)
def test_a_refusal_instead_of_leave_to_send_closes_the_connection(
    server: Wire, path: bytes, host: bytes, status: int
) -> None:
    """The client may send its next request in place of the body, which would be taken for that."""
    head = b"POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n"
    refused = answer(server.say(head % (path, host)))
    assert refused.status == status
    assert refused.headers["connection"] == "close"


def test_http_1_0_gets_one_answer_whatever_it_expects(server: Wire) -> None:
    """Its clients know no 100, and take it for the answer (RFC 9110, section 10.1.1)."""
    head = b"POST /v1/classify HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    assert [one.status for one in answers(server.say(head % len(IMAGE) + IMAGE))] == [200]


def test_a_request_with_leave_to_send_keeps_the_connection(server: Wire) -> None:
    """Its body is asked for, and the next request answered."""
    first = PLAIN.replace(b"Connection: close\r\n", b"Expect: 100-continue\r\n")
    said = server.say(first, PLAIN)
    assert said.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert [one.status for one in answers(said)] == [100, 200, 200]


SOUND = [
    *ANSWERED.values(),
    PLAIN,
    GET + OFFERS["WebSocket"] + b"\r\n",
    PATH + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(IMAGE),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Requests, one behind the other, of which some bytes were changed, left out or said twice."""
    data = b"".join(draw(st.lists(st.sampled_from(SOUND), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 20))
        put = draw(
            st.sampled_from([b"", b"\r", b"\n", b"\r\n\r\n", b"\0", b" ", b":", b"\xff", b"0", data[:40]])
        )
        data = data[:place] + put + data[place + length :]
    return data


@settings(max_examples=examples(75), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=damaged())
def test_whatever_comes_is_answered_in_http(
    server: Wire, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    """Soundly or with a problem document, and nothing breaks."""
    with server.connect() as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        said = everything(connection)
    for one in answers(said.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")):
        assert one.status < 500, one
        if one.status >= 400 and one.body:
            assert one.headers["content-type"] in ("application/problem+json", "application/json"), one
    assert answer(server.say(GET + CLOSE)).status == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


class Readable(asyncio.Transport):
    """What a connection reads from: of asyncio's transports, no more than it needs."""

    max_size = 2**18  # as asyncio has it

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 5)})
        self.protocol: asyncio.BaseProtocol | None = None

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self.protocol is not None
        return self.protocol

    def is_closing(self) -> bool:
        return False

    def nothing(self, *_: object, **__: object) -> None:
        """No one looks."""

    write = close = set_write_buffer_limits = pause_reading = resume_reading = nothing


@pytest.mark.anyio
async def test_small_chunks_are_read_a_little_at_a_time() -> None:
    """64 KiB of one-byte chunks, or of requests without a body, take the parser long: many clients that send
    them would stop all others."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while True:  # no answer
            await receive()

    config = main_config(app, Settings())
    config.load()
    protocol_class: Any = config.http_protocol_class
    transport = Readable()
    protocol = protocol_class(config=config, server_state=ServerState(), app_state={})
    transport.protocol = protocol
    protocol.connection_made(transport)
    read_at_once = [transport.max_size]
    for data in (
        CHUNKED,
        chunked(bytes(4000), 1)[: -len(b"0\r\n\r\n")],
        b"ffff\r\n" + bytes(2_000),
        bytes(0xFFFF - 2_000) + b"\r\n" + chunked(bytes(2**20), 2**19),
        GET + b"\r\n",
        2 * (GET + b"\r\n"),
        PATH + b"Content-Length: 9999\r\n\r\n",
        b"a",
    ):
        protocol.data_received(data)
        await asyncio.sleep(0)
        read_at_once.append(transport.max_size)
    protocol.connection_lost(None)
    assert read_at_once == [2**14, 512, 512, 512, 2**14, 2**14, 2**12, 2**16, 2**16]
