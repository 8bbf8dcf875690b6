"""Every error answer: application/problem+json (RFC 9457), or on the routes for clients that others wrote the
`{"error": "..."}` that those show to their users."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app import metrics, tracing
from app.errors import InvalidValue, MethodNotAllowed, NotFound, Problem, UnreadableRequest

MEDIA_TYPE = "application/problem+json"


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
    async def frameworks(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        problem: Problem
        if error.status_code == 404:
            problem = NotFound(f"there is no {request.url.path}; see /docs")
        elif error.status_code == 405:
            headers["Allow"] = allowed = _allowed_methods(request)
            problem = MethodNotAllowed(f"{request.url.path} takes {allowed}, not {request.method}")
        else:
            problem = UnreadableRequest(str(error.detail))
        return problem_response(problem, request.scope["path"], headers)


def _allowed_methods(request: Request) -> str:
    """Those of all routes of the path; the framework names those of the first one."""
    methods = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
    routes = request.app.routes
    return ", ".join(
        method
        for method in methods
        if any(route.matches({**request.scope, "method": method})[0] == Match.FULL for route in routes)
    )
