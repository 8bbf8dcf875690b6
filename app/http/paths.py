"""Every path of the server with its attributes.

Middleware uses these attributes before a route is chosen, so they also apply to paths that no route answers.
A path that is not listed has the defaults: it requires a key and is traced.
"""

from dataclasses import dataclass
from typing import Literal

QueryForm = Literal["options", "embed", "hugging face"]


@dataclass(frozen=True, slots=True, eq=False)
class KnownPath:
    """A path or, if it ends with a slash, everything below it.

    ``public``: GET is answered without an API key. ``traced``: its requests get spans. ``while_stopping``: it
    is answered while the server stops. ``plain_errors``: errors are `{"error": "..."}`, which clients of
    other servers show to their users; otherwise they are application/problem+json. ``image_query``: POST
    takes an encoded image as its body, with this form of options in the query.
    """

    path: str
    public: bool = False
    traced: bool = True
    while_stopping: bool = False
    plain_errors: bool = False
    image_query: QueryForm | None = None


# For people.
# POST is Hugging Face's API.
PAGE = KnownPath("/", public=True, plain_errors=True, image_query="hugging face")
FAVICON = KnownPath("/favicon.ico", public=True)
STATIC = KnownPath("/static/", public=True)
DOCS = KnownPath("/docs", public=True)
DOCS_FILES = KnownPath("/static-offline-docs/", public=True)  # mounted by fastapi_offline
OPENAPI = KnownPath("/openapi.json", public=True)

# For operators. Monitoring requests these every few seconds, so they are not traced.
LIVEZ = KnownPath("/livez", public=True, traced=False, while_stopping=True)
READYZ = KnownPath("/readyz", public=True, traced=False)
PING = KnownPath("/ping", public=True, traced=False)
METRICS = KnownPath("/metrics", public=True, traced=False, while_stopping=True)
STATS = KnownPath("/v1/stats", traced=False)

# For clients of this server.
CLASSIFY = KnownPath("/v1/classify", image_query="options")
EMBED = KnownPath("/v1/embed", image_query="embed")
MODELS = KnownPath("/v1/models")

# For clients of other servers.
SAGEMAKER = KnownPath("/invocations", image_query="options")
HUGGING_FACE = KnownPath("/models/", plain_errors=True, image_query="hugging face")
KSERVE_V1 = KnownPath("/v1/models/", plain_errors=True)
OPEN_INFERENCE = KnownPath("/v2", plain_errors=True)
OPEN_INFERENCE_LIVE = KnownPath("/v2/health/live", public=True, traced=False, plain_errors=True)
OPEN_INFERENCE_READY = KnownPath("/v2/health/ready", public=True, traced=False, plain_errors=True)
REPOSITORY_INDEX = KnownPath("/v2/repository/index", plain_errors=True)
REPOSITORY_MODELS = KnownPath("/v2/repository/models/", plain_errors=True)
MODEL_STATISTICS = KnownPath("/v2/models/stats", plain_errors=True)
SYSTEM_REGIONS, CUDA_REGIONS = "/v2/systemsharedmemory", "/v2/cudasharedmemory"
SHARED_MEMORY_STATUS = KnownPath(SYSTEM_REGIONS + "/status", plain_errors=True)
SHARED_MEMORY_UNREGISTER = KnownPath(SYSTEM_REGIONS + "/unregister", plain_errors=True)
CUDA_SHARED_MEMORY_STATUS = KnownPath(CUDA_REGIONS + "/status", plain_errors=True)
CUDA_SHARED_MEMORY_UNREGISTER = KnownPath(CUDA_REGIONS + "/unregister", plain_errors=True)
OPEN_INFERENCE_REST = KnownPath("/v2/", plain_errors=True)

PATHS = tuple(value for value in globals().values() if isinstance(value, KnownPath))
UNLISTED = KnownPath("")
_WHOLE = {each.path: each for each in PATHS if each is PAGE or not each.path.endswith("/")}
_FOLDERS = tuple(each for each in PATHS if each.path not in _WHOLE)


def known(path: str) -> KnownPath:
    """The entry for the path of a request."""
    whole = _WHOLE.get(path)
    if whole is not None:
        return whole
    return next((folder for folder in _FOLDERS if path.startswith(folder.path)), UNLISTED)


def is_public(method: str, path: str) -> bool:
    """Whether a request is answered without an API key. This applies to reading only: GET / is the page, but
    POST / classifies."""
    return method in ("GET", "HEAD") and known(path).public
