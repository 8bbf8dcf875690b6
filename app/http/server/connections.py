"""Connections within limits: how many, and how long one may be idle, send a head, or read its answer.

uvicorn's protocol only limits the time between requests, its parser accepts headers of any size, and a
request with Upgrade loses its body. This adds the rest: unreadable requests get an error message, and Upgrade
is ignored.

The file is long because a connection is one state that all callbacks of the transport, the parser and the
timers share. What does not need it is in the modules of this folder.
"""

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import get_remote_addr

from app.errors import HeadersTooLarge, Overloaded, Problem, TooSlow
from app.http.arrival import arrives, refused_by_connection
from app.http.client_gone import tells_when_gone
from app.http.problems import head_and_body
from app.http.server.half_closed import HalfClosed
from app.http.server.heads import checked_head, head_bytes, without_offers
from app.http.server.joined import JoinedWrites
from app.http.server.patience import UnreadAnswer
from app.http.server.places import Places
from app.http.server.unreadable import OPENING, is_simple_request, unreadable
from app.telemetry import metrics

MOST_HEAD_BYTES = 64 * 1024
_HEAD_TOO_LARGE = f"the request line and headers may have at most {MOST_HEAD_BYTES} bytes together"
# Chunks of one byte have five bytes of framing. A request with more overhead is not a valid upload.
_FRAMING = 8
# Parsing 64 KiB of one-byte chunks takes 0.05 s, so 100 clients that send them would block the event loop for
# seconds. Therefore, little of a chunked body is read at once until its average chunk is large enough.
_SPARING_READ, _SMALL_CHUNK = 512, 256
# A usual request fits into one read. 64 KiB can contain 1,600 pipelined requests: after a client has sent two
# in one read, less is read at once between its requests.
_READ_OF_HEADS, _READ_PIPELINED, _READ_OF_BODIES = 16 * 1024, 4 * 1024, 64 * 1024
_LINGER_S = 5.0


class Connection(HttpToolsProtocol):
    """uvicorn's connection with limits, which are set by `bounded`."""

    places = Places(10_000)
    head_timeout_s = 20.0
    write_timeout_s = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._in_message = False
        self._read = 0  # bytes of the last read
        # Bytes since this request began, including the whole read that contained its beginning.
        self._since_begin = 0
        self._beside_body = 0  # bytes of this request outside its body
        self._body = 0
        self._chunks = 0  # number of pieces of a chunked body
        self._is_chunked = False
        self._requests_in_read = 0  # that began in it
        self._pipelines = False  # whether several ever did
        self._opening = b""  # the first bytes of this request
        self._offer = False  # the last head offered to change the protocol
        self._refusal: Problem | None = None  # later data cannot be parsed; sent after the pending responses
        self._refused = False  # the refusal has been sent
        self._socket: asyncio.Transport | None = None  # the transport below TLS, if any
        self._half_closed: HalfClosed | None = None
        self.address = ""
        self._began = 0.0
        self._gone: asyncio.Future[None] = self.loop.create_future()
        self._cycles: list[RequestResponseCycle] = []  # of all current requests; uvicorn only keeps the last

    # --- the transport ------------------------------------------------------------------------------
    def accepted(self, transport: asyncio.Transport) -> None:
        """Count a new connection, also one whose TLS handshake is not done."""
        self._socket = self.transport = transport
        self._began = self.loop.time()
        self._unread = UnreadAnswer(transport, self.loop, self.write_timeout_s)
        # Pause writing at the first unsent byte, so that the write timeout applies. (With a limit of 0, TLS
        # would never resume.)
        transport.set_write_buffer_limits(high=1)
        self.address = (get_remote_addr(transport) or ("",))[0]
        self.connections.add(self)
        self.places.take(self.address)

    def forgotten(self) -> None:
        """Count the end of the connection."""
        if self._socket is not None:
            self._socket = None
            self._unread.end()
            if self._half_closed is not None:
                self._half_closed.end()
            self.connections.discard(self)
            self.places.leave(self.address)

    def one_too_many(self, beyond: int = 0) -> str | None:
        """The error message if there are too many connections, by more than ``beyond``."""
        return self.places.trouble(self.address, beyond)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse the connection if there are too many. Otherwise start the timer for its first request."""
        if self._socket is None:
            self.accepted(transport)
            self._read_at_once(_READ_OF_HEADS)
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1)
        self.transport = JoinedWrites(transport, self.loop, lambda: self._unread.waits)  # type: ignore[assignment]
        if trouble := self.one_too_many():
            self.refuse(Overloaded(trouble, retry_after_s=1.0), linger=False)
        else:
            self._arm(self.head_timeout_s - (self.loop.time() - self._began))

    def _read_at_once(self, most_bytes: int) -> None:
        """What asyncio reads in one turn, otherwise 256 KiB. (Beneath TLS it is less, and stays so.)"""
        if self._is_the_socket() and hasattr(self._socket, "max_size"):
            self._socket.max_size = most_bytes  # type: ignore[union-attr]

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel its timers."""
        self._disarm()
        self._unset_keepalive_if_required()
        self.forgotten()
        for cycle in self._cycles:
            cycle.disconnected = True
        if not self._gone.done():
            self._gone.set_result(None)
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client sends no more. If it may wait for answers, the connection stays until they are sent.
        (TLS has no such state.)"""
        if self._socket is None or self._in_message or self._idle() or not self._is_the_socket():
            return False
        self._half_closed = HalfClosed(self._socket, self.loop, self._ask)
        return True

    def _ask(self) -> None:
        """Send an interim answer (RFC 9110, section 15.2), for which HTTP/1.0 has none."""
        is_running = not self.pipeline and not self.cycle.response_started
        if is_running and self.cycle.scope["http_version"] == "1.1":
            self.transport.write(STATUS_LINE[100] + b"\r\n")

    def data_received(self, data: bytes) -> None:
        """Parse, unless the head is too large or an earlier request was refused."""
        if self._refused or self._refusal is not None or self.transport.is_closing():
            return
        self._read = len(data)
        self._requests_in_read = 0
        self._since_begin += self._read
        self._beside_body += self._read
        if not self._in_message:
            self._opening = (self._opening + data)[:OPENING]
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._cannot_read(
                cause if isinstance(cause, Problem) else unreadable(str(cause or error), self._opening)
            )
            return
        if self.transport.is_closing():
            return
        if self._is_chunked and self._in_message:
            is_small = self._body <= _SMALL_CHUNK * self._chunks
            self._read_at_once(_SPARING_READ if is_small else _READ_OF_BODIES)
        if self._in_head and self._timer is None:  # most heads arrive in one piece and need no timer
            self._arm(self.head_timeout_s)
        if self._in_head and is_simple_request(data):
            self._cannot_read(unreadable("version", b""))
        elif self._in_message and self._beside_body > MOST_HEAD_BYTES + _FRAMING * self._body:
            if self._idle():
                self.refuse(HeadersTooLarge(_HEAD_TOO_LARGE))
            else:  # endless trailers, after a body or during another response
                self.transport.abort()
        elif self._timer is None and self.timeout_keep_alive_task is None and self._idle():
            self._arm(self.head_timeout_s)  # line ends between requests do not count as a request

    def _parse(self, data: bytes) -> None:
        """Feed the parser. If a request has Upgrade, the parser takes what follows the head for the other
        protocol: then the request is parsed again without Upgrade (RFC 9110, section 7.8)."""
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as paused:
                head = without_offers(
                    self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers
                )
                data = head + data[paused.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self._offer = False
            else:
                return

    def pause_writing(self) -> None:
        """The client reads more slowly than its answer is written: start its timer."""
        super().pause_writing()
        if self._is_the_socket():
            self.unread()

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if self._is_the_socket():
            self.read()

    def unread(self) -> None:
        """Bytes wait in the socket's transport."""
        self._unread.begin()

    def read(self) -> None:
        """No bytes wait any more."""
        if self._socket is not None and self._socket.get_write_buffer_size() == 0:
            self._unread.end()
            self.transport.drained()  # type: ignore[attr-defined]

    def _is_the_socket(self) -> bool:
        return self._socket is not None and self._socket.get_protocol() is self

    def timeout_keep_alive_handler(self) -> None:
        """The time between requests begins once the previous answer has been read."""
        if self._unread.waits:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()

    # --- the parser ---------------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        """The first byte of a request. Its head has a time limit: see data_received."""
        super().on_message_begin()
        self._in_head = self._in_message = True
        self._requests_in_read += 1
        self._pipelines = self._pipelines or self._requests_in_read > 1
        self._beside_body = self._body = self._chunks = 0
        self._since_begin = self._read
        self._disarm()

    def on_headers_complete(self) -> None:
        """The head is complete. It is parsed again if it has Upgrade. Raises a Problem."""
        # One read can be larger than the maximum head, so a complete head may still be too large.
        if self._since_begin > MOST_HEAD_BYTES and head_bytes(self.url, self.headers) > MOST_HEAD_BYTES:
            raise HeadersTooLarge(_HEAD_TOO_LARGE)
        method = self.parser.get_method().decode("ascii")
        self.url, headers = checked_head(method, self.parser.get_http_version(), self.url, self.headers)
        if self.parser.should_upgrade():
            self._offer = True
            self._requests_in_read -= 1  # it begins again
            return
        self.headers[:] = headers
        self._in_head = False
        self._is_chunked = any(name == b"transfer-encoding" for name, _ in headers)
        if any(name == b"content-length" for name, _ in headers):
            self._read_at_once(_READ_OF_BODIES)
        self._disarm()
        arrives(self.scope)  # type: ignore[arg-type]
        tells_when_gone(self.scope, self._gone)  # type: ignore[arg-type]
        if self.parser.get_http_version() == "1.0":
            # HTTP/1.0 clients take the 100 response for the final one (RFC 9110, 10.1.1).
            self.expect_100_continue = False
        super().on_headers_complete()
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete] + [self.cycle]

    def on_body(self, body: bytes) -> None:
        """Part of the body."""
        self._body += len(body)
        self._chunks += 1
        self._beside_body = max(0, self._beside_body - len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete. If it has already been answered, the connection is idle now."""
        if self._offer:
            return
        self._in_message = False
        self._is_chunked = False
        self._read_at_once(_READ_PIPELINED if self._pipelines else _READ_OF_HEADS)
        self._opening = b""
        if self._idle():
            self._arm(self.timeout_keep_alive)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is sent. If its request is not complete, the rest is read for a while and discarded: if
        the connection were closed at once, the client might never see the answer."""
        is_last = not self.pipeline
        super().on_response_complete()
        if self._refusal is not None and is_last and not self.transport.is_closing():
            self.refuse(self._refusal)
            return
        if self._half_closed is not None and is_last:
            self.transport.close()
        # After each response, uvicorn resumes reading, and would queue any number of requests.
        if self.pipeline:
            self.flow.pause_reading()
        if self._in_message and not self._in_head and self._idle():
            self._unset_keepalive_if_required()
            self._arm(_LINGER_S)

    # --- timers -------------------------------------------------------------------------------------
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._time_is_up)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_is_up(self) -> None:
        self._timer = None
        if self._refused:
            self.transport.close()
        elif self.transport.is_closing():
            return
        elif not self._idle():  # the head of a pipelined request, while another is being answered
            self._arm(self.head_timeout_s)
        elif self._in_head:
            self.refuse(
                TooSlow(f"the request line and headers did not arrive within {self.head_timeout_s:g} s")
            )
        else:
            self.transport.close()

    # --- refusals -----------------------------------------------------------------------------------
    def _cannot_read(self, problem: Problem) -> None:
        """Refuse a request whose head or body cannot be read, after the answers to the requests before it,
        and read no further."""
        in_body = self._in_message and not self._in_head
        if (
            in_body and self.cycle.response_started
        ):  # a second response would be taken for the response to another request
            self.transport.close()
            return
        if in_body:
            if any(cycle is self.cycle for cycle, _ in self.pipeline):
                self.pipeline.popleft()
                self._refusal = problem
                return
            refused_by_connection(self.cycle.scope, problem.status)  # type: ignore[arg-type]
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        elif not self._idle():
            self._refusal = problem
            return
        self.refuse(problem)

    def refuse(self, problem: Problem, *, linger: bool = True) -> None:
        """Send an answer without a request, and close. ``linger``: what still arrives is discarded for a
        while: if the connection were closed at once, the client might never see the answer."""
        metrics.REFUSALS.labels(problem.slug).inc()
        self.transport.write(STATUS_LINE[problem.status] + head_and_body(problem))
        self._refused = True
        self._unset_keepalive_if_required()
        if linger and self.transport.can_write_eof():
            self.transport.write_eof()
            self._arm(_LINGER_S)
        else:
            self.transport.close()


def bounded(places: Places, head_timeout_s: float, write_timeout_s: float) -> type[Connection]:
    """The protocol class with these limits, for uvicorn.Config's ``http``."""
    limits = {
        "places": places,
        "head_timeout_s": head_timeout_s,
        "write_timeout_s": write_timeout_s,
    }
    return type("BoundedConnection", (Connection,), limits)
