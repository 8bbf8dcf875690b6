"""The path prefix under which a proxy publishes the server, if the proxy does not remove it from requests.

A prefix that the proxy removes needs nothing: the pages and /openapi.json only use relative links.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

_MOVED = 307


class UnderPrefix:
    """Removes the prefix. Requests without it are also answered, such as probes that do not go through the
    proxy."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on. /PREFIX itself is redirected to /PREFIX/, to which the page's links are relative."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        if path == self._prefix and scope["type"] == "http":
            target = self._prefix.rpartition("/")[2].encode() + b"/"
            query: bytes = scope["query_string"]
            location = target + (b"?" + query if query else b"")
            headers = [(b"location", location), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": _MOVED, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        if not path.startswith(self._prefix + "/"):
            await self._app(scope, receive, send)
            return
        within = {**scope, "path": path.removeprefix(self._prefix)}
        raw: bytes | None = scope.get("raw_path")
        if raw is not None:
            within["raw_path"] = raw.removeprefix(self._prefix.encode())
        await self._app(within, receive, send)
