"""Everything that can go wrong with a request: class = whose fault + status + what may be said of it.

Sent as `application/problem+json` (RFC 9457). ``slug`` names the problem type for programs; ``detail`` is
for people and says what was wrong and what is allowed.
"""

import math
from typing import ClassVar

_LONGEST_RETRY_AFTER_S = 3600.0


class Problem(Exception):
    """A request that ends in an error answer. Subclasses say which."""

    status: ClassVar[int]
    slug: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, detail: str, *, retry_after_s: float | None = None, image: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.image = image

    def to_dict(self) -> dict[str, object]:
        """The members of the problem document; ``image`` is the place of the image at fault."""
        document: dict[str, object] = {
            "type": f"urn:trimvit:problem:{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.image is not None:
            document["image"] = self.image
        return document

    def headers(self) -> dict[str, str]:
        """Headers that go with the answer."""
        seconds = self.retry_after_s
        if seconds is None or not math.isfinite(seconds):  # nobody knows when
            return {}
        return {"Retry-After": str(math.ceil(min(max(seconds, 1), _LONGEST_RETRY_AFTER_S)))}


class ClientProblem(Problem):
    """The request is at fault; sending it again unchanged will fail again."""


class UnreadableRequest(ClientProblem):
    """The request is not HTTP/1.1, or its body is not what its Content-Type says."""

    status, slug, title = 400, "unreadable-request", "The request cannot be read"


class Unauthorized(ClientProblem):
    """The API key is missing or not valid."""

    status, slug, title = 401, "unauthorized", "A valid API key is needed"


class PriorityNotAllowed(ClientProblem):
    """The operator does not allow this caller the priority that it asked for."""

    status, slug, title = 403, "priority-not-allowed", "The priority is not allowed"


class AdminOnly(ClientProblem):
    """The API key may not load and unload models: it is not marked `admin`."""

    status, slug, title = 403, "admin-only", "The API key may not do this"


class NotLocal(ClientProblem):
    """Shared memory is for clients on the server's own machine, which connect without a proxy."""

    status, slug, title = 403, "not-local", "This is for clients on the same machine"


class CrossSiteRequest(ClientProblem):
    """A page of another site sent the request, and `--cors-origins` does not allow that site."""

    status, slug, title = 403, "cross-site-request", "Pages of other sites may not send this"


class NotFound(ClientProblem):
    """The path does not exist."""

    status, slug, title = 404, "not-found", "Not found"


class MethodNotAllowed(ClientProblem):
    """The path does not support this method."""

    status, slug, title = 405, "method-not-allowed", "The path does not take this method"


class TooSlow(ClientProblem):
    """The head or the body did not arrive in the time allowed."""

    status, slug, title = 408, "too-slow", "The request came too slowly"


class RepositoryConflict(ClientProblem):
    """Another model is being loaded or unloaded, or the default model is to be unloaded."""

    status, slug, title = 409, "repository-conflict", "The model cannot be changed now"


class TooLarge(ClientProblem):
    """The request has more bytes, pixels or images than the limits allow."""

    status, slug, title = 413, "too-large", "The request is too large"


class UnsupportedMediaType(ClientProblem):
    """The body is not an image, its format is not supported, or its encoding is not gzip or deflate."""

    status, slug, title = 415, "unsupported-media-type", "The content type is not supported"


class ExpectationFailed(ClientProblem):
    """The Expect header asks for something other than `100-continue`."""

    status, slug, title = 417, "expectation-failed", "What the request expects cannot be done"


class MisdirectedRequest(ClientProblem):
    """The Host header names a host that this server does not serve; see `--allowed-hosts`."""

    status, slug, title = 421, "misdirected-request", "The server does not answer to this name"


class InvalidValue(ClientProblem):
    """An option is unknown, or its value is out of range."""

    status, slug, title = 422, "invalid-value", "A value is not allowed"


class ModelNotLoadable(ClientProblem):
    """What the name of a model stands for does not exist or cannot be served; the detail says why."""

    status, slug, title = 422, "model-not-loadable", "The model cannot be loaded"


class NoClasses(ClientProblem):
    """Classes are asked of a model without a head; `/v1/embed` answers with its features, and `--head` gives
    it a head."""

    status, slug, title = 422, "no-classes", "The model has no classes"


class UndecodableImage(ClientProblem):
    """The bytes are not a complete, valid image, or what its samples mean is unknown."""

    status, slug, title = 422, "undecodable-image", "The image cannot be decoded"


class HeadersTooLarge(ClientProblem):
    """The request line and the headers are larger than 64 KiB."""

    status, slug, title = 431, "headers-too-large", "The request's head is too large"


class ServerProblem(Problem):
    """The server cannot do it now; the same request may succeed later."""


class QueueFull(ServerProblem):
    """Too many images are waiting, or the predicted wait is longer than `--max-queue-s`."""

    status, slug, title = 429, "queue-full", "Too many images are waiting"


class NotReady(ServerProblem):
    """No worker is ready, images cannot be decoded at present, or the server is shutting down."""

    status, slug, title = 503, "not-ready", "The server is not ready"


class DeadlineUnmeetable(ServerProblem):
    """The predicted wait exceeds the deadline. Without `Retry-After`, an idle server is too slow as well."""

    status, slug, title = 503, "deadline-unmeetable", "The deadline cannot be met"


class Overloaded(ServerProblem):
    """The process holds as many connections or request bytes as it may."""

    status, slug, title = 503, "overloaded", "The server holds as much as it can"


class OutOfMemory(ServerProblem):
    """The device does not have enough memory for even one image at present."""

    status, slug, title = 503, "out-of-memory", "There is not enough memory"


class WorkerLost(ServerProblem):
    """Two workers died while they computed the image, or one while it loaded the model. Do not send it again:
    it may be the cause."""

    status, slug, title = 500, "engine-lost", "The worker was lost while it worked on the request"


class DeadlinePassed(ServerProblem):
    """The deadline passed before the answer was ready."""

    status, slug, title = 504, "deadline-passed", "The deadline has passed"


class ModelLoadTooSlow(ServerProblem):
    """Loading a further model took longer than `--load-limit-s`; the models that are served go on."""

    status, slug, title = 504, "model-load-too-slow", "Loading the model takes too long"


class InternalFault(ServerProblem):
    """A bug in the server, logged under the request id, or an image whose scores are not finite."""

    status, slug, title = 500, "internal-fault", "Something went wrong in the server"


class InsufficientMemory(ServerProblem):
    """There is not enough memory for a further model; the detail has the numbers."""

    status, slug, title = 507, "insufficient-memory", "There is not enough memory for the model"
