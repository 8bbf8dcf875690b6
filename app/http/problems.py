"""Every error answer: application/problem+json (RFC 9457), or on the routes for clients that others wrote the
`{"error": "..."}` that those show to their users."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app import metrics, tracing
from app.errors import InvalidValue, MethodNotAllowed, NotFound, Problem, UnreadableRequest
from app.http.methods import METHODS, allow

MEDIA_TYPE = "application/problem+json"
_PREFLIGHT = "Access-Control-Request-Method"  # a browser asks for a page, which may not call; see access.py


def problem_response(problem: Problem, path: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer for a problem of a request for ``path``, counted and traced."""
    metrics.REFUSALS.labels(problem.slug).inc()
    tracing.refused(problem.slug)
    if path in ("/", "/v2") or path.startswith(("/v2/", "/models/")):
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


def install_problem_handlers(app: FastAPI) -> None:
    """Answer our own problems and the framework's errors alike. (Unforeseen ones: see middleware.py.)"""

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
        asks_what_is_allowed = request.method == "OPTIONS" and _PREFLIGHT not in request.headers
        if asks_what_is_allowed and request.scope["path"] == "*":
            return Response(status_code=204, headers={"Allow": allow({"GET", "POST"})})
        if error.status_code == 404:
            problem = NotFound(f"there is no {request.url.path}; see /docs")
        elif error.status_code == 405:
            methods = _methods(request)
            headers["Allow"] = allow(methods)
            if asks_what_is_allowed:
                return Response(status_code=204, headers=headers)
            taken = ", ".join(method for method in METHODS if method in methods)
            problem = MethodNotAllowed(f"{request.url.path} takes {taken}, not {request.method}")
        else:
            problem = UnreadableRequest(str(error.detail))
        return problem_response(problem, request.scope["path"], headers)


def _methods(request: Request) -> set[str]:
    """Those of all routes of the path; the framework names those of the first one."""
    routes = request.app.routes
    return {
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] == Match.FULL for route in routes)
    }
