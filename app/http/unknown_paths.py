"""Suggestions for unknown paths: typing errors in known ones, and routes of other servers."""

import re
from collections.abc import Collection, Iterable
from urllib.parse import quote

from fastapi import APIRouter
from fastapi.routing import APIRoute

from app.nearest import nearest

_CLASSIFY = (
    "to classify photographs, use POST /v1/classify, for example curl --data-binary @photo.jpg "
    "URL/v1/classify"
)
_HEALTH = "use GET /readyz (ready to answer images) or GET /livez (the process runs)"
_METRICS = "use GET /metrics (metrics for Prometheus) or GET /v1/stats (a few of them as JSON)"
_METRICS_ELSEWHERE = (
    "metrics for Prometheus are on the port of --operations-port; GET /v1/stats has a few of them as JSON"
)
_DOCS = "use GET /docs (documentation) or GET /openapi.json (OpenAPI document)"
_MODELS = "use GET /v1/models (models) or GET /v2/models/NAME (tensors of a model)"
_REPOSITORY = (
    "models are listed, loaded and unloaded by POST /v2/repository/index and "
    "/v2/repository/models/NAME/load or /unload, where the server was started with --model-repository; "
    "GET /v1/models describes those that are served"
)
_INFER = "POST /v2/models/NAME/infer classifies images"

# Complete paths of routes of other servers, and their equivalent here. The first match is used.
_OF_OTHERS: tuple[tuple[str, str], ...] = (
    # Triton and KServe.
    (r"/v2/repository(/.*)?|/v2/models/.+/(un)?load", _REPOSITORY),
    (
        r"/v2/(system|cuda)sharedmemory(/.*)?",
        "of Triton's shared memory, only system shared memory is supported: POST "
        "/v2/systemsharedmemory/region/NAME/register",
    ),
    (
        r"/v2(/models/.+)?/(trace/setting|logging)",
        "trace and log settings cannot be changed while the server runs",
    ),
    (r"/v2/models/.+/(generate|generate_stream|explain)", f"only infer is supported: {_INFER}"),
    (r"/v2/models/.+/versions", "a model has one version, '1': GET /v2/models/NAME/versions/1"),
    (r"/v2/models", _MODELS),
    (
        r"/v1/models/.+:(predict|explain|classify|regress|transform|infer|generate)",
        "of the verbs of KServe and TensorFlow Serving, only POST /v1/models/NAME:predict is supported",
    ),
    (r"/v1/models/.+/(metadata|versions/.*|labels/.*)", f"a model has one version; {_MODELS}"),
    # TorchServe, Cog, LitServe, BentoML, Gradio, Seldon, and common guesses.
    (r"/predictions(/.*)?|/api/v[\d.]+/predictions", _CLASSIFY),
    (r"/explanations/.+", f"explanations are not supported; {_CLASSIFY}"),
    (r"(/\w+)*/(predict|classify|infer|inference|classification|image-classification)", _CLASSIFY),
    (r"/(invoke|run|score|upload|images?|classes|gradio_api/.*)|/pipeline/.*", _CLASSIFY),
    # OpenAI's routes, and those of language model servers.
    (
        r"(/v1)?/(embeddings|chat/completions|completions|responses|images/.+|moderations|audio/.+|rerank|"
        r"messages|generate|generate_stream|embed|score|tokenize)",
        f"this server only classifies and embeds images; {_CLASSIFY}",
    ),
    # Paths that operators try.
    (
        r"((/api|/v1|/v2|/-|/actuator)*/(health|healthz|healthcheck|health-check|health_check|status|alive|live|"
        r"liveness|ready|readiness|healthy)(/.*)?)|/-/routes|/health/.+",
        _HEALTH,
    ),
    (r"/(api/)?(v1/)?(prometheus|metrics)(/.*)?", _METRICS),
    (r"/models|/api/models/.+|/(api/)?(labels|tags|version|info)|/v1/(labels|info|version)", _MODELS),
    (r"/(redoc|swagger.*|apidocs?|api|(api|v1|v2)/docs|docs/.+|(v1/)?openapi\.ya?ml|v1/openapi.json)", _DOCS),
)
_COMPILED = tuple((re.compile(pattern, re.IGNORECASE), words) for pattern, words in _OF_OTHERS)
_LONGEST = 200  # longer paths are not typos


def of_another_server(path: str) -> str | None:
    """The path here that corresponds to a route of another server. None for any other path."""
    plain = _plain(path)
    return next((words for pattern, words in _COMPILED if pattern.fullmatch(plain)), None)


def what_was_meant(path: str, routes: Collection[str]) -> str:
    """The end of an error message for an unknown path: the nearest route, the name of another server's route
    here, or where all routes are listed."""
    plain = _plain(path)
    routes = [route for route in routes if route != "/"]
    listed = "GET /docs lists the routes" if "/docs" in routes else f"there are {', '.join(routes)}"
    if len(path) > _LONGEST:
        return f"; {listed}"
    found = next((route for route in routes if plain.lower().endswith(route)), None)
    if found is None and "/docs" in routes and (words := of_another_server(path)) is not None:
        return f"; {_METRICS_ELSEWHERE if words is _METRICS and '/metrics' not in routes else words}"
    found = found or nearest(plain, routes)
    return f"; {listed}" if found is None else f"; did you mean {found}?"


def for_method(method: str, path: str) -> str:
    """The end of an error message for a method that the path does not support."""
    return f"; {_INFER}" if method != "GET" and path.startswith("/v2/models/") else ""


def without_slash(path: str) -> str | None:
    """The path without slashes at its end, as a relative URL. None for a path without them."""
    bare = path.rstrip("/")
    if bare in ("", path):
        return None
    return "../" * (len(path) - len(bare)) + quote(bare.rpartition("/")[2])


def paths_of(routers: Iterable[APIRouter]) -> tuple[str, ...]:
    """The paths of the routers' routes that name no model."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    return tuple(dict.fromkeys(route.path for route in routes if "{" not in route.path))


def _plain(path: str) -> str:
    """The path without duplicate slashes and without slashes at its end."""
    return re.sub(r"/+", "/", path[: _LONGEST + 1]).rstrip("/") or "/"
