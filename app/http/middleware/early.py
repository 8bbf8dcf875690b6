"""Refusal by a request's head alone: where the body is one encoded image, all options are in the query, so
whether the dispatcher would accept it is known before the body is read.

Under overload nearly all requests end here, so little is done for each. The same check follows when the body
has been read, for what has come meanwhile and for all other forms of body.
"""

from dataclasses import dataclass

from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Receive, Scope, Send

from app.dispatch.questions import Expected
from app.errors import Problem
from app.http.arrival import seconds_since
from app.http.bodies.content import is_raw_image, kind_of
from app.http.callers import caller_of
from app.http.classification import Classification
from app.http.head import header_of
from app.http.paths import HUGGING_FACE, PATHS, QueryForm, known
from app.http.problems import problem_response
from app.http.routes.hugging_face import asked_of
from app.http.routes.sagemaker import query_of
from app.inference.option_layers import options_of, single_values
from app.messages.model import ModelInfo
from app.priority import Priority
from app.telemetry import metrics

# What the queries that came lately ask for is remembered: a client sends the same again and again.
_MOST_QUERIES, _LONGEST_QUERY = 1024, 512


@dataclass(frozen=True, slots=True)
class ImageRoute:
    """A route that takes raw images. ``path_format`` names it in metrics; ``query``: the form of its options.
    In Hugging Face's form problems name no image."""

    path_format: str
    query: QueryForm


# The name of the model follows the folder.
_ROUTES = {
    path: ImageRoute(f"{path.path}{{model_name}}" if path is HUGGING_FACE else path.path, path.image_query)
    for path in PATHS
    if path.image_query is not None
}


class RefuseEarly:
    """Answers what is sure to be refused before its body is read, and passes all else on.

    A client that waits for leave to send its body (Expect: 100-continue, RFC 9110 section 10.1.1) may now not
    send it at all, so its connection is closed. The others' go on: what comes of their bodies is dropped.
    """

    def __init__(self, app: ASGIApp, classification: Classification) -> None:
        self._app = app
        self._classification = classification
        self._model: ModelInfo | None = None
        self._asked: dict[tuple[QueryForm, Priority, bytes], Expected | None] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        model = self._classification.model_now
        route = None if model is None else _route(scope, model)
        if model is None or route is None:
            await self._app(scope, receive, send)
            return
        problem = self._problem(scope, route, model)
        if problem is None:
            await self._app(scope, receive, send)
            return
        problem.image = None if route.query == "hugging face" else 0
        metrics.labelled(metrics.IMAGES, problem.slug).inc()
        scope["route"] = route
        waits = "100-continue" in (header_of(scope, b"expect") or "").lower()
        answer = problem_response(problem, scope["path"], {"Connection": "close"} if waits else None)
        await answer(scope, receive, send)

    def _problem(self, scope: Scope, route: ImageRoute, model: ModelInfo) -> Problem | None:
        if not is_raw_image(kind_of(header_of(scope, b"content-type") or "")):
            return None
        if model is not self._model:
            self._model = model
            self._asked.clear()
        query = query_of(scope)
        highest = self._classification.max_priority_of(scope)
        key = (route.query, highest, query)
        if key in self._asked:
            expected = self._asked[key]
        else:
            expected = self._expected(query, route, model, highest)
            if len(query) <= _LONGEST_QUERY:
                if len(self._asked) >= _MOST_QUERIES:
                    self._asked.clear()
                self._asked[key] = expected
        if expected is None:
            return None
        return self._classification.refusal(expected, caller_of(scope), seconds_since(scope))

    def _expected(
        self, query: bytes, route: ImageRoute, model: ModelInfo, highest: Priority
    ) -> Expected | None:
        """What the query asks for; None where it cannot be answered, for which the route has the words."""
        try:
            values = single_values(QueryParams(query.decode("latin-1")).multi_items())
            options = asked_of(values)[0] if route.query == "hugging face" else options_of(values, None)
            return self._classification.expected(options, model, highest)
        except Problem:
            return None


def _route(scope: Scope, model: ModelInfo) -> ImageRoute | None:
    """The route that the request takes, if that takes raw images for this model."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path = known(scope["path"])
    if path is HUGGING_FACE and scope["path"] != path.path + model.name:
        return None
    return _ROUTES.get(path)
