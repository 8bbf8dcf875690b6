"""The request ID, metrics and log line of every request. Pure ASGI, so disconnects stay visible."""

import logging
import random
import re

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import InternalFault
from app.http.arrival import arrives, seconds_since, status_of_connection
from app.http.head import header_of
from app.http.paths import known
from app.http.problems import problem_response
from app.telemetry import metrics, tallies
from app.telemetry.logs import request_id as current_request_id
from app.telemetry.tracing import RequestSpan, Tracing

log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"
_REQUEST_ID = REQUEST_ID.lower().encode()
CLIENT_GONE = 499  # nginx's status for a request whose client disconnected; counted, never sent
_SOUND_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Observe:
    """Accepts or creates a request ID and returns it; counts, times and traces the request; and answers
    unexpected exceptions with 500. (Starlette's own handler for these is outside all middleware, where there
    would be neither ID nor count.)"""

    def __init__(self, app: ASGIApp, tracing: Tracing | None = None) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its id in ``scope["state"]["request_id"]``."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header_of(scope, _REQUEST_ID) or ""
        request_id = given if _SOUND_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        scope.setdefault("state", {})["request_id"] = request_id
        current_request_id.set(request_id)
        arrives(scope)
        span: RequestSpan | None = None
        if self._tracing is not None and known(scope["path"]).traced:
            span = self._tracing.begin(scope, request_id)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (_REQUEST_ID, request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = status_of_connection(scope) or CLIENT_GONE
        except Exception:
            log.exception("unhandled exception in a request")
            if status:  # the response has started, so the server must close the connection
                raise
            fault = InternalFault(
                f"unexpected error; the server log has the details under request ID {request_id}"
            )
            await problem_response(fault, scope["path"])(scope, receive, send_with_id)
        finally:
            seconds = seconds_since(scope)
            # The route pattern, not the raw path, because clients could create any number of label values.
            route = getattr(scope.get("route"), "path_format", "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            metrics.labelled(metrics.REQUESTS, route, method, str(status)).inc()
            tallies.observe(metrics.REQUEST_SECONDS, seconds, route)
            if span is not None:
                span.end(method, route, None if status == CLIENT_GONE else status)
            if log.isEnabledFor(logging.DEBUG):
                line = {
                    "method": method,
                    "route": route,
                    "status": status,
                    "duration_ms": round(seconds * 1000, 1),
                }
                log.debug("%(method)s %(route)s %(status)d %(duration_ms).1f ms", line, extra=line)
