"""Repeats the requests of a replica that has died at another one. Pure ASGI, around Ray's HTTP proxy.

Ray routes a request again as long as no replica has accepted it. After that, the death of the replica is a
plain 500 for the client. Here the request is stored until its answer begins; classifying twice does no harm.

Ray's proxies load this by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, which `trimvit ray` sets.
"""

import logging
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import DeadlinePassed, NotReady, Problem, WorkerLost
from app.http.problems import problem_response
from app.processes import background

log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"
REPLICAS_A_REQUEST_MAY_OUTLIVE = 2
_PROXYS_OWN = {
    503: NotReady("no replica can be started; contact the operator of the cluster", retry_after_s=5.0),
    408: DeadlinePassed("no replica answered in time"),
}


class AskAgain:
    """Stores a request's messages and repeats them for the next replica, until an answer begins.

    It also gives the proxy's own errors the form of ours, and removes the second X-Request-ID that Ray adds.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and again if its replica is lost."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get(REQUEST_ID) or uuid.uuid4().hex
        headers = [pair for pair in scope["headers"] if pair[0].lower() != b"x-request-id"]
        headers.append((b"x-request-id", request_id.encode("latin-1")))
        kept: list[Message] = []
        for replica in range(1, REPLICAS_A_REQUEST_MAY_OUTLIVE + 1):
            attempt = _Attempt(scope["path"], kept, receive, send)
            try:
                # The proxy modifies the scope and headers, so it gets a copy.
                await self._app({**scope, "headers": [*headers]}, attempt.receive, attempt.send)
            except Exception as error:
                if attempt.answered:  # the response has started, so the connection must be closed
                    raise
                background.incident("Ray's proxy", error)
            if attempt.answered or any(message["type"] == "http.disconnect" for message in kept):
                return
            log.warning("request %s: replica %d died while processing it", request_id, replica)
        problem = WorkerLost(f"{REPLICAS_A_REQUEST_MAY_OUTLIVE} replicas died while processing this request")
        answer = _problem(problem, scope["path"], request_id)
        await answer(scope, receive, send)


class _Attempt:
    """One replica's attempt at a request: it receives again what was received before."""

    def __init__(self, path: str, kept: list[Message], receive: Receive, send: Send) -> None:
        self._path = path
        self._kept = kept
        self._given = 0
        self._receive = receive
        self._send = send
        self._start: Message | None = None
        self.answered = False

    async def receive(self) -> Message:
        if self._given == len(self._kept):
            self._kept.append(await self._receive())
        self._given += 1
        return self._kept[self._given - 1]

    async def send(self, message: Message) -> None:
        """An answer begins with the first bytes of its body: a status without any could still be replaced."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._start is not None:
            self.answered = True
            start, self._start = _ours(self._start, self._path), None
            if isinstance(start, JSONResponse):
                await start({"type": "http"}, self._receive, self._send)
                self._send = _nowhere
                return
            await self._send(start)
        await self._send(message)


def _ours(start: Message, path: str) -> Message | JSONResponse:
    """The head of the answer with one request ID or, if Ray's proxy answers with an error of its own, our
    problem for it."""
    headers = MutableHeaders(scope=start)
    ids = headers.getlist(REQUEST_ID)
    problem = _PROXYS_OWN.get(start["status"])
    if problem is not None and headers.get("Content-Type", "").startswith("text/plain"):
        return _problem(problem, path, ids[0])
    headers[REQUEST_ID] = ids[0]  # the application's ID precedes the proxy's
    return start


def _problem(problem: Problem, path: str, request_id: str) -> JSONResponse:
    return problem_response(problem, path, {REQUEST_ID: request_id})


async def _nowhere(message: Message) -> None:
    """Discards the rest of an answer that ours has replaced."""


def middlewares() -> list[Middleware]:
    """Called by Ray's HTTP proxies at their start."""
    return [Middleware(AskAgain)]
