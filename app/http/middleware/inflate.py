"""The one place where a body is decompressed. The routes behind it see no Content-Encoding.

A few bytes can inflate to gigabytes. So they are inflated piece by piece, off the event loop, as the route
reads them, and each piece counts towards the limits of a body and of all bodies before the next one is made.
"""

import zlib
from collections.abc import AsyncIterator, Awaitable

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import Problem, TooLarge, UnreadableRequest, UnsupportedMediaType
from app.http.bodies.memory import Share, share_of
from app.http.head import header_of
from app.http.problems import problem_response
from app.wrong_values import short

ALLOWED = "gzip, deflate"
_PIECE = 2**18
_MOST_MEMBERS = 4096  # of gzip; a file compressed in blocks of 64 KiB has fewer
_MOST_CODINGS = 2  # gzip twice occurs if two layers of a client both compress
_NAMES = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})
_NO_CODING = ("identity", "")
_GZIP, _ZLIB, _RAW = zlib.MAX_WBITS + 16, zlib.MAX_WBITS, -zlib.MAX_WBITS


class Inflated:
    """Decompresses bodies with a Content-Encoding of gzip or deflate, and answers 415 to others (RFC 9110,
    15.5.16)."""

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app = app
        self._most_bytes = most_bytes

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Pass on, with the decompressed body."""
        if (
            scope["type"] != "http"
            or scope["method"] in _WITHOUT_BODY
            or header_of(scope, b"content-encoding") is None
        ):
            return self._app(scope, receive, send)
        try:
            codings = _codings(",".join(Headers(scope=scope).getlist("content-encoding")))
        except Problem as problem:
            answer = problem_response(problem, scope["path"], {"Accept-Encoding": ALLOWED})
            return answer(scope, receive, send)
        if codings:
            # Content-Length is the length of the compressed body.
            without = (b"content-encoding", b"content-length")
            scope["headers"] = [pair for pair in scope["headers"] if pair[0].lower() not in without]
            stages = [Inflater(coding, self._most_bytes) for coding in codings]
            receive = _InflatedBody(receive, stages, share_of(scope)).receive
        return self._app(scope, receive, send)


def _codings(listed: str) -> list[str]:
    """The codings of a body in the order in which they are removed. Raises UnsupportedMediaType."""
    names = [name.strip().lower() for name in listed.split(",")]
    names = [name for name in names if name not in _NO_CODING]
    for name in names:
        if name not in _NAMES:
            raise UnsupportedMediaType(
                f"the Content-Encoding is {short.repr(name)}; allowed are gzip and deflate, or "
                "none (send the body uncompressed)"
            )
    if len(names) > _MOST_CODINGS:
        raise UnsupportedMediaType(
            f"the body has {len(names)} Content-Encodings; at most {_MOST_CODINGS} are allowed"
        )
    return [_NAMES[name] for name in reversed(names)]


class _InflatedBody:
    """An incoming body, decompressed."""

    def __init__(self, receive: Receive, stages: list["Inflater"], share: Share) -> None:
        self._receive = receive
        self._share = share
        self._pieces = self._sent()
        for stage in stages:
            self._pieces = self._inflated(self._pieces, stage)
        self._over = False

    async def receive(self) -> Message:
        """The next piece of the decompressed body, and after it all other messages. Raises UnreadableRequest
        for broken data, Overloaded, and ClientDisconnect if the body does not arrive."""
        if self._over:
            return await self._receive()
        piece = await anext(self._pieces, None)
        if piece is None:
            self._over = True
            return {"type": "http.request", "body": b"", "more_body": False}
        self._share.take(len(piece))
        return {"type": "http.request", "body": piece, "more_body": True}

    async def _inflated(self, source: AsyncIterator[bytes], stage: "Inflater") -> AsyncIterator[bytes]:
        async for data in source:
            stage.feed(data)
            while stage.has_more:
                if piece := await self._share.run(stage.inflate):
                    yield piece
        stage.check_end()

    async def _sent(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientDisconnect
            more = message.get("more_body", False)
            if data := message.get("body", b""):
                yield data
                self._share.give_back(len(data))  # it has been inflated


class Inflater:
    """Removes one coding, piece by piece, until more than ``most_bytes`` have come out."""

    def __init__(self, coding: str, most_bytes: int) -> None:
        self._coding = coding
        self._most_bytes = most_bytes
        self._inflater = zlib.decompressobj(_GZIP) if coding == "gzip" else None
        self._left = b""
        self._full = False
        self._members = 1
        self._size = 0

    @property
    def has_more(self) -> bool:
        """Whether more may come out without more input."""
        if self._inflater is None:
            return len(self._left) > 1
        return bool(self._left) or self._full

    def feed(self, data: bytes) -> None:
        """Add input."""
        self._left += data

    def inflate(self) -> bytes:
        """The next piece. Empty if more input is needed. Raises UnreadableRequest and TooLarge."""
        piece = b""
        while not piece and self.has_more:
            piece = self._step()
        return piece

    def _step(self) -> bytes:
        if self._inflater is None:
            self._inflater = zlib.decompressobj(_ZLIB if _is_zlib(self._left) else _RAW)
        elif self._inflater.eof:
            self._inflater = self._next_member()
        try:
            piece = self._inflater.decompress(self._left, _PIECE)
        except zlib.error as error:
            raise UnreadableRequest(f"the body is not valid {self._coding}: {error}") from error
        self._left = self._inflater.unconsumed_tail or self._inflater.unused_data
        self._full = len(piece) == _PIECE and not self._inflater.eof  # zlib may have more output pending
        self._size += len(piece)
        if self._size > self._most_bytes:
            raise TooLarge(f"the decompressed body is larger than the {self._most_bytes} bytes allowed")
        return piece

    def _next_member(self) -> "zlib._Decompress":
        """Begin the next member, which only gzip can have (RFC 1952, 2.2)."""
        self._members += 1
        if self._coding != "gzip":
            raise UnreadableRequest(f"the body is not valid {self._coding}: there are bytes after its end")
        if self._members > _MOST_MEMBERS:
            raise UnreadableRequest(
                f"the gzip body has more than {_MOST_MEMBERS} members; compress it in one"
            )
        return zlib.decompressobj(_GZIP)

    def check_end(self) -> None:
        """Raises UnreadableRequest if the data ends too early."""
        if self._inflater is None or not self._inflater.eof or self._left:
            raise UnreadableRequest(f"the body is not valid {self._coding}: it is truncated")


def _is_zlib(data: bytes) -> bool:
    """Whether deflate has zlib's header, as RFC 9110 defines it, or is raw, as some clients send it. Browsers
    accept both."""
    return len(data) > 1 and data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
