"""Requests that wait for 100 Continue before they send their body (RFC 9110, section 10.1.1)."""

from collections.abc import Awaitable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.head import header_of


class CloseUnasked:
    """Closes the connection after an answer that was sent without asking for the body: the client may not
    send the body at all now, and its next request would be taken for it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Pass on, and add Connection: close to such an answer."""
        if scope["type"] != "http" or "100-continue" not in (header_of(scope, b"expect") or "").lower():
            return self._app(scope, receive, send)
        asked = False

        async def ask() -> Message:
            nonlocal asked
            asked = True
            return await receive()

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start" and not asked:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        return self._app(scope, ask, tell)
