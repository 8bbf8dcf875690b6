"""Answers whose body is sent in pieces.

An answer with pictures of 64 images has 30 MB. Joining it and passing it to the transport at once copies it
three times on the event loop, during which nobody else is answered for a tenth of a second.
"""

from collections.abc import Mapping, Sequence

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

_SMALL = 2**16  # bytes; smaller content is sent in one piece


def in_pieces(
    pieces: Sequence[bytes], *, media_type: str, headers: Mapping[str, str], status: int = 200
) -> Response:
    """An answer with this body."""
    size = sum(map(len, pieces))
    if size <= _SMALL:
        return Response(b"".join(pieces), status, media_type=media_type, headers=dict(headers))
    return _Pieces(pieces, status, media_type, {**headers, "Content-Length": str(size)})


class _Pieces(Response):
    """Sends each piece when the client has read those before it."""

    def __init__(
        self, pieces: Sequence[bytes], status: int, media_type: str, headers: dict[str, str]
    ) -> None:
        super().__init__(status_code=status, media_type=media_type, headers=headers)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
