"""Routes for images: called without what FastAPI does for other routes.

Such a route reads its request and writes its answer itself, so it needs no dependencies, no response model
and none of the three stacks of things to close that FastAPI keeps for every request. /openapi.json lists them
as it does all others.
"""

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.types import Receive, Scope, Send


class DirectRoute(APIRoute):
    """Calls its function with the request and the parameters of the path, and sends the Response that it
    returns. The function declares nothing else, and no parameter of the path is more than a string."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or have FastAPI refuse the method."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        response = await self.endpoint(Request(scope, receive, send), **scope["path_params"])
        await response(scope, receive, send)


def include(app: FastAPI, router: APIRouter) -> None:
    """Add the routes of a router to those of the application, where they are found at once. FastAPI looks
    through an included router twice for every request."""
    app.router.routes.extend(router.routes)
