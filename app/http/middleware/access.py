"""Access control: API keys, CORS, and the headers that tell a browser what a page may do.

All of it is ASGI middleware that depends on the path only, so it applies to every route.
"""

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import Unauthorized
from app.http.paths import DOCS, is_public
from app.http.problems import PROBLEMS, problem_response
from app.security.keys import KeyRing

KEY_HEADER = "X-API-Key"
# Other places where clients put a key. They are not read, but the error mentions it.
_OTHER_SCHEMES = frozenset({"apikey", "api-key", "basic", "digest", "key", "negotiate", "token"})
_KEYS_IN_QUERIES = frozenset({"access_token", "api-key", "api_key", "apikey", "key", "token", "x-api-key"})

_FOR_ALL = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
_HTML_POLICY = {
    "default-src": "'self'",
    "img-src": "'self' data: blob:",
    "object-src": "'none'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
# An inline script, as in Swagger UI's page.
_INLINE_SCRIPT = re.compile(rb"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", re.DOTALL)


class RequireKey:
    """Lets requests with a valid key through, with the caller's name in ``scope["state"]["caller"]``, the
    key's highest priority in ``scope["state"]["max_priority"]``, and whether it may load and unload models in
    ``scope["state"]["is_admin"]``. Also lets requests that read public paths through. Answers others with
    401."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        presented = _presented(Headers(scope=scope))
        key = None if presented is None else self._keys.key_of(presented)
        if key is not None:
            scope.setdefault("state", {}).update(
                caller=key.name, max_priority=key.max_priority, is_admin=key.is_admin
            )
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # RFC 6455: policy violation
            return
        elif not is_public(scope["method"], scope["path"]):
            problem = Unauthorized(_advice(Headers(scope=scope), scope["query_string"], presented))
            challenge = 'Bearer realm="trimvit"' + ("" if presented is None else ', error="invalid_token"')
            answer = problem_response(problem, scope["path"], {"WWW-Authenticate": challenge})
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _presented(headers: Headers) -> str | None:
    """The key of a request, in either header."""
    scheme, _, credentials = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    return headers.get(KEY_HEADER)


def _advice(headers: Headers, query: bytes, presented: str | None) -> str:
    """What is wrong with the key of a request, or with the place where it is. The key itself is not
    repeated."""
    if presented is not None:
        if presented.strip("\"'") != presented:
            return "the API key is not valid: send it without quotation marks"
        if presented == "" or presented.lower().startswith("bearer"):
            return f"the API key is not valid: send 'Authorization: Bearer KEY' or '{KEY_HEADER}: KEY'"
        return "the API key is not valid, or not valid any longer"
    asked = f"this server requires an API key: send 'Authorization: Bearer KEY' or '{KEY_HEADER}: KEY'"
    if "authorization" in headers:
        scheme = headers["Authorization"].partition(" ")[0].lower()
        given = f"not {scheme!r}" if scheme in _OTHER_SCHEMES else "write Bearer before the key"
        return f"{asked}; {given}"
    if any(name.lower() in _KEYS_IN_QUERIES for name in QueryParams(query.decode("latin-1"))):
        return f"{asked}; a key in the query is ignored, because URLs end up in logs"
    return asked


class BrowserHeaders:
    """Tells browsers not to guess content types, and not to load anything from other sites."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Pass on, and add the headers to the answer."""
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        held: Message | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_FOR_ALL]
                if not _is_html(message):
                    await send(message)
                elif scope["path"] == DOCS.path:
                    held = message  # until the body is known, whose scripts determine the policy
                else:
                    headers = MutableHeaders(scope=message)
                    headers.setdefault("Content-Security-Policy", _policy(_HTML_POLICY))
                    await send(message)
                return
            if held is not None:
                start, held = held, None
                MutableHeaders(scope=start)["Content-Security-Policy"] = _docs_policy(message["body"])
                await send(start)
            await send(message)

        return self._app(scope, receive, send_with_headers)


def _is_html(start: Message) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/html") for name, value in start["headers"])


def _policy(directives: dict[str, str]) -> str:
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def _docs_policy(page: bytes) -> str:
    """The policy for Swagger UI, which has a script in its page, allowed by its hash, and inline styles."""
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"
        for script in _INLINE_SCRIPT.findall(page)
    ]
    return _policy(
        {
            **_HTML_POLICY,
            "script-src": " ".join(["'self'", *hashes]),
            "style-src": "'self' 'unsafe-inline'",
        }
    )


def declare_keys(app: FastAPI) -> None:
    """Declare in the OpenAPI document that closed paths need a key, in either header, or answer 401."""
    without: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        known = app.openapi_schema is not None
        document = without()
        if known:
            return document
        document.setdefault("components", {})["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
            "key": {"type": "apiKey", "in": "header", "name": KEY_HEADER, "description": "An API key."},
        }
        document["security"] = [{"bearer": []}, {"key": []}]
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if is_public(method.upper(), path):
                    operation["security"] = []
                else:
                    operation["responses"]["401"] = {
                        "description": "The API key is missing or not valid.",
                        "content": _error_content(operation["responses"]),
                        "headers": {"WWW-Authenticate": {"schema": {"type": "string"}}},
                    }
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _error_content(responses: dict[str, Any]) -> dict[str, Any]:
    """The form of the operation's other errors, which depends on the route; see problems.py."""
    declared = [answer["content"] for status, answer in responses.items() if status[0] in "45"]
    return declared[0] if declared else PROBLEMS[400]["content"]
