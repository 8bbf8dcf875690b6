"""HEAD for every route that supports GET, and responses to OPTIONS."""

from collections.abc import Awaitable

from starlette.types import ASGIApp, Receive, Scope, Send

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")


class HeadAsGet:
    """Answers HEAD as GET, so that no route needs to handle it (RFC 9110, section 9.3.2). The server leaves
    out the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Pass on. The middleware around this sees the original method and the route that answered."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return self._app(scope, receive, send)
        return self._as_get(scope, receive, send)

    async def _as_get(self, scope: Scope, receive: Receive, send: Send) -> None:
        as_get = {**scope, "method": "GET"}
        try:
            await self._app(as_get, receive, send)
        finally:
            if "route" in as_get:
                scope["route"] = as_get["route"]


def allow(methods: set[str]) -> str:
    """The Allow header of a path that takes these methods."""
    also = {"HEAD", "OPTIONS"} if "GET" in methods else {"OPTIONS"}
    return ", ".join(method for method in METHODS if method in methods | also)
