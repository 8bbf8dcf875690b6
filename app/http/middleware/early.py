"""Refuses a request by its head alone. If the body is one encoded image, all options are in the query, so it
is known before the body is read whether the dispatcher would accept it.

Under overload, nearly all requests end here, so little is done for each. The same check is made again when
the body has been read, for changes in the meantime and for all other forms of body.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import Problem
from app.http.arrival import seconds_since
from app.http.bodies.content import is_raw_image, kind_of
from app.http.callers import caller_of
from app.http.classification import Classification
from app.http.head import header_of
from app.http.model_choice import found_model
from app.http.paths import HUGGING_FACE, PATHS, QueryForm, known
from app.http.problems import problem_response
from app.http.routes.hugging_face import asked_of
from app.http.routes.sagemaker import query_of
from app.inference.asked_lately import (
    by_query,
    embed_options_of_query,
    options_of_query,
    values_of_query,
)
from app.inference.options import ImageOptions
from app.messages.model import ModelInfo
from app.telemetry import metrics


@dataclass(frozen=True, slots=True)
class ImageRoute:
    """A route that takes raw images. ``path_format`` names it in metrics. ``query``: the form of its options.
    In Hugging Face's form, problems do not name an image."""

    path_format: str
    query: QueryForm


# The model name follows the prefix.
_ROUTES = {
    path: ImageRoute(f"{path.path}{{model_name}}" if path is HUGGING_FACE else path.path, path.image_query)
    for path in PATHS
    if path.image_query is not None
}


class RefuseEarly:
    """Answers requests that are certain to be refused before their body is read, and passes on all others.

    A client that waits for 100 Continue before it sends its body (Expect: 100-continue, RFC 9110 section
    10.1.1) may now not send it at all, so its connection is closed. Other connections continue: the rest of
    their body is discarded.
    """

    def __init__(self, app: ASGIApp, classification: Classification) -> None:
        self._app = app
        self._classification = classification

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Refuse, or pass on."""
        model = self._classification.model_now
        route = None if model is None else _route(scope)
        if model is None or route is None:
            return self._app(scope, receive, send)
        problem = self._problem(scope, route, model)
        if problem is None:
            return self._app(scope, receive, send)
        problem.image = None if route.query == "hugging face" else 0
        metrics.labelled(metrics.IMAGES, problem.slug).inc()
        scope["route"] = route
        waits = "100-continue" in (header_of(scope, b"expect") or "").lower()
        answer = problem_response(problem, scope["path"], {"Connection": "close"} if waits else None)
        return answer(scope, receive, send)

    def _problem(self, scope: Scope, route: ImageRoute, model: ModelInfo) -> Problem | None:
        if not is_raw_image(kind_of(header_of(scope, b"content-type") or "")):
            return None
        options_of = _OPTIONS[route.query]
        highest = self._classification.max_priority_of(scope)
        try:
            options = options_of(query_of(scope))
            name = _named_in_path(scope) or options.model
            if name is not None:
                model = found_model(self._classification.models, name)
            expected = self._classification.expected(options, model, highest)
        except Problem:  # the route will report this error
            return None
        return self._classification.refusal(expected, caller_of(scope), seconds_since(scope))


@by_query
def hugging_face_options(query: bytes) -> ImageOptions:
    """The options of a query in Hugging Face's form. Raises InvalidValue."""
    return asked_of(values_of_query(query))[0]


_OPTIONS: dict[QueryForm, Callable[[bytes], ImageOptions]] = {
    "options": options_of_query,
    "embed": embed_options_of_query,
    "hugging face": hugging_face_options,
}


def _route(scope: Scope) -> ImageRoute | None:
    """The route of the request, if it takes raw images."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    return _ROUTES.get(known(scope["path"]))


def _named_in_path(scope: Scope) -> str | None:
    """The model that the path of Hugging Face's form names."""
    path: str = scope["path"]
    return path.removeprefix(HUGGING_FACE.path) if known(path) is HUGGING_FACE else None
