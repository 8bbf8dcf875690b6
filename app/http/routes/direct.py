"""Routes for images, which are called without FastAPI's processing of other routes.

Such a route reads its request and writes its answer itself, so it needs no dependencies, no response model,
and none of the context managers and handlers that FastAPI and Starlette create for every request.
/openapi.json lists them like all others.
"""

from collections.abc import Awaitable, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import Problem
from app.http.problems import problem_response


class DirectRoute(APIRoute):
    """Calls its function with the request and the path parameters, and sends the Response that it returns.
    The function declares nothing else, and path parameters are strings."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or have FastAPI refuse the method."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        try:
            response = await self.endpoint(Request(scope, receive), **scope["path_params"])
        except Problem as problem:
            response = problem_response(problem, scope["path"])
        await response(scope, receive, send)


class CallDirectly:
    """The innermost middleware: calls the direct route of a POST request, and passes all else on.

    ``routes``: the direct routes, in the order of all routes. No other route has their paths.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[DirectRoute]) -> None:
        self._app = app
        self._whole = {route.path_format: route for route in routes if not route.param_convertors}
        self._patterns = [route for route in routes if route.param_convertors]

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer, or pass on."""
        route = self._route(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        return (self._app if route is None else route.handle)(scope, receive, send)

    def _route(self, scope: Scope) -> DirectRoute | None:
        whole = self._whole.get(scope["path"])
        if whole is not None:
            scope["route"], scope["path_params"] = whole, {}
            return whole
        for route in self._patterns:
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope.update(found)
                scope["route"] = route
                return route
        return None


def include(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Add the routes of these routers to those of the application, where they are found at once: FastAPI
    looks through an included router twice for every request. Other middleware is to be added after this."""
    routes: list[Any] = [route for router in routers for route in router.routes]
    app.router.routes.extend(routes)
    app.add_middleware(CallDirectly, routes=[route for route in routes if isinstance(route, DirectRoute)])
