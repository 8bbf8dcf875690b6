"""Every error answer: application/problem+json (RFC 9457), or `{"error": "..."}` on the routes for clients of
other servers, which show it to their users."""

import json
from collections.abc import Collection
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app.errors import InvalidValue, MethodNotAllowed, NotFound, Problem, UnreadableRequest
from app.http.answers import WARNINGS_HEADER_SCHEMA
from app.http.methods import METHODS, allow
from app.http.paths import known
from app.http.schemas import ProblemDocument
from app.http.unknown_paths import for_method, of_another_server, what_was_meant, without_slash
from app.telemetry import metrics, tracing

MEDIA_TYPE = "application/problem+json"
# A browser's preflight for a page that may not call the server; see access.py.
_PREFLIGHT = "Access-Control-Request-Method"
_LONGEST_SHOWN = 120


def problem_response(problem: Problem, path: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer for a problem of a request for ``path``. It is counted and traced."""
    metrics.labelled(metrics.REFUSALS, problem.slug).inc()
    tracing.refused(problem.slug)
    if known(path).plain_errors:
        place = "" if problem.image is None else f"image {problem.image}: "
        return JSONResponse(
            {"error": place + problem.detail},
            status_code=problem.status,
            headers={**(headers or {}), **problem.headers()},
        )
    return JSONResponse(
        problem.to_dict(),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers={**(headers or {}), **problem.headers()},
    )


def head_and_body(problem: Problem) -> bytes:
    """The answer, after its status line, for data that is not a valid request. It has no path that could
    decide the form. The connection is closed after it."""
    body = json.dumps(problem.to_dict()).encode()
    headers = {
        "Content-Type": MEDIA_TYPE,
        "Content-Length": str(len(body)),
        "Connection": "close",
        **problem.headers(),
    }
    if problem.status == 405:
        headers["Allow"] = "GET, HEAD, OPTIONS, POST"
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
    return head + b"\r\n" + body


def install_problem_handlers(app: FastAPI, routes: Collection[str] = ()) -> None:
    """Answer our own problems and the framework's errors in the same form. (For unexpected exceptions, see
    middleware/observe.py.) ``routes``: the paths that may be suggested for an unknown one."""

    @app.exception_handler(Problem)
    async def ours(request: Request, problem: Problem) -> JSONResponse:
        return problem_response(problem, request.scope["path"])

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return problem_response(InvalidValue(str(error.errors()[0]["msg"])), request.scope["path"])

    @app.exception_handler(HTTPException)
    async def frameworks(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        problem: Problem
        path: str = request.scope["path"]
        asks_what_is_allowed = request.method == "OPTIONS" and _PREFLIGHT not in request.headers
        if asks_what_is_allowed and path == "*":
            return Response(status_code=204, headers={"Allow": allow({"GET", "POST"})})
        if error.status_code == 404:
            bare = without_slash(path)
            if bare is not None and _has_route(request, path.rstrip("/")):
                return _redirected(bare, request)
            problem = NotFound(f"there is no {_shown(path)}{what_was_meant(path, routes)}")
        elif (
            error.status_code == 405
            # This happens if the path is also the GET route of a model with this name.
            and "POST" not in _methods(request)
            and path not in routes
            and (words := of_another_server(path)) is not None
        ):
            problem = NotFound(f"there is no {request.method} {_shown(path)}; {words}")
        elif error.status_code == 405:
            methods = _methods(request)
            headers["Allow"] = allow(methods)
            if asks_what_is_allowed:
                return Response(status_code=204, headers=headers)
            taken = ", ".join(method for method in METHODS if method in methods)
            problem = MethodNotAllowed(
                f"{_shown(path)} supports {taken}, not {request.method}{for_method(request.method, path)}"
            )
        else:
            problem = UnreadableRequest(str(error.detail))
        return problem_response(problem, request.scope["path"], headers)


def _shown(path: str) -> str:
    """The path as it was typed, shortened."""
    typed = quote(path, safe="/:@~+,;=!$&'()*")
    return typed if len(typed) <= _LONGEST_SHOWN else typed[: _LONGEST_SHOWN - 3] + "..."


def _has_route(request: Request, path: str) -> bool:
    """Whether a route has this path, whatever its methods."""
    scope = {**request.scope, "path": path}
    return any(route.matches(scope)[0] != Match.NONE for route in request.app.routes)


def _redirected(location: str, request: Request) -> Response:
    """A redirect to the path without the slash at its end, by a relative URL, which is right behind any
    proxy."""
    query = request.scope["query_string"].decode("latin-1")
    return PlainTextResponse(
        "the path must not end with a slash; leave it out, or follow the redirect (curl -L)\n",
        status_code=307,
        headers={"Location": f"{location}?{query}" if query else location},
    )


def _methods(request: Request) -> set[str]:
    """The methods of all routes of the path. The framework only names those of the first one."""
    routes = request.app.routes
    return {
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] == Match.FULL for route in routes)
    }


_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}


def each(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of the answer with errors=each if some image has a problem."""
    return {
        207: {
            "model": model,
            "description": "With errors=each: at least one image failed, and its problem is in the place of "
            "its result. Retry-After: the time after which every image that may succeed later can be sent "
            "again.",
            "headers": {**WARNINGS_HEADER_SCHEMA, **_RETRY_AFTER},
        }
    }


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": meaning,
        "content": {
            "application/problem+json": {
                "schema": {"$ref": f"#/components/schemas/{ProblemDocument.__name__}"}
            }
        },
        "headers": _RETRY_AFTER if "Retry-After" in meaning else {},
    }
    for status, meaning in {
        400: "The request cannot be read.",
        403: "The priority is above what this caller may ask for.",
        404: "The model does not exist.",
        408: "The body arrived too slowly.",
        413: "More bytes, pixels or images than allowed.",
        415: "The media type is not supported.",
        422: "A value is out of range, or an image cannot be decoded.",
        429: "The queue is full; see Retry-After.",
        500: "A bug, or two workers died while computing the image.",
        503: "Not ready, shutting down, overloaded, or the deadline cannot be met; see Retry-After.",
        504: "The deadline passed.",
    }.items()
}
