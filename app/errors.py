"""The errors of the API. Each class defines a problem type, its HTTP status and its title.

Errors are sent as `application/problem+json` (RFC 9457). ``slug`` identifies the problem type for programs;
``detail`` tells people what was wrong, what is allowed and what to do.
"""

import math
from typing import ClassVar

_LONGEST_RETRY_AFTER_S = 3600.0


class Problem(Exception):
    """The base class of all errors that are sent to clients."""

    status: ClassVar[int]
    slug: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, detail: str, *, retry_after_s: float | None = None, image: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.image = image

    def to_dict(self) -> dict[str, object]:
        """The members of the problem document; ``image`` is the index of the image at fault."""
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
        """Additional headers of the response."""
        seconds = self.retry_after_s
        if seconds is None or not math.isfinite(seconds):  # the time is unknown
            return {}
        return {"Retry-After": str(math.ceil(min(max(seconds, 1), _LONGEST_RETRY_AFTER_S)))}


class ClientProblem(Problem):
    """The request is at fault; sending it again unchanged will fail again."""


class UnreadableRequest(ClientProblem):
    """The request is not valid HTTP/1.1, or its body does not match its Content-Type."""

    status, slug, title = 400, "unreadable-request", "The request cannot be read"


class Unauthorized(ClientProblem):
    """The API key is missing or not valid."""

    status, slug, title = 401, "unauthorized", "A valid API key is required"


class PriorityNotAllowed(ClientProblem):
    """The caller is not allowed to use the requested priority."""

    status, slug, title = 403, "priority-not-allowed", "The priority is not allowed"


class AdminOnly(ClientProblem):
    """The API key is not marked `admin`, which loading and unloading models requires."""

    status, slug, title = 403, "admin-only", "The API key does not allow this"


class NotLocal(ClientProblem):
    """Shared memory is only for clients on the server's machine that connect without a proxy."""

    status, slug, title = 403, "not-local", "Only clients on the same machine can use this"


class CrossSiteRequest(ClientProblem):
    """The request comes from a web page of another site that `--cors-origins` does not list."""

    status, slug, title = 403, "cross-site-request", "Cross-site requests are not allowed"


class NotFound(ClientProblem):
    """The path does not exist."""

    status, slug, title = 404, "not-found", "Not found"


class MethodNotAllowed(ClientProblem):
    """The path does not support this method."""

    status, slug, title = 405, "method-not-allowed", "The path does not support this method"


class TooSlow(ClientProblem):
    """The request head or body did not arrive within the time limit."""

    status, slug, title = 408, "too-slow", "The request arrived too slowly"


class RepositoryConflict(ClientProblem):
    """Another model is being loaded or unloaded, or the request would unload the default model."""

    status, slug, title = 409, "repository-conflict", "The model cannot be loaded or unloaded now"


class TooLarge(ClientProblem):
    """The request has more bytes, pixels or images than the limits allow."""

    status, slug, title = 413, "too-large", "The request is too large"


class UnsupportedMediaType(ClientProblem):
    """The body is not an image, its format is not supported, or its encoding is not gzip or deflate."""

    status, slug, title = 415, "unsupported-media-type", "The content type is not supported"


class ExpectationFailed(ClientProblem):
    """The Expect header asks for something other than `100-continue`."""

    status, slug, title = 417, "expectation-failed", "The expectation is not supported"


class MisdirectedRequest(ClientProblem):
    """The Host header names a host that this server does not serve; see `--allowed-hosts`."""

    status, slug, title = 421, "misdirected-request", "The server does not serve this host"


class InvalidValue(ClientProblem):
    """An option is unknown, or its value is out of range."""

    status, slug, title = 422, "invalid-value", "A value is not allowed"


class ModelNotLoadable(ClientProblem):
    """The model does not exist or cannot be served; the detail says why."""

    status, slug, title = 422, "model-not-loadable", "The model cannot be loaded"


class NoClasses(ClientProblem):
    """The request asks a model without a head for labels. `/v1/embed` returns its features, and `--head` adds
    a head."""

    status, slug, title = 422, "no-classes", "The model has no classes"


class UndecodableImage(ClientProblem):
    """The bytes are not a complete, valid image, or the meaning of its samples is unknown."""

    status, slug, title = 422, "undecodable-image", "The image cannot be decoded"


class HeadersTooLarge(ClientProblem):
    """The request line and the headers are larger than 64 KiB."""

    status, slug, title = 431, "headers-too-large", "The request head is too large"


class ServerProblem(Problem):
    """The server cannot process the request now; the same request may succeed later."""


class QueueFull(ServerProblem):
    """Too many images are waiting, or the predicted wait is longer than `--max-queue-s`."""

    status, slug, title = 429, "queue-full", "Too many images are waiting"


class NotReady(ServerProblem):
    """No worker is ready, images cannot be decoded at present, or the server is shutting down."""

    status, slug, title = 503, "not-ready", "The server is not ready"


class DeadlineUnmeetable(ServerProblem):
    """The predicted latency exceeds the deadline; without `Retry-After`, even on an idle server."""

    status, slug, title = 503, "deadline-unmeetable", "The deadline cannot be met"


class Overloaded(ServerProblem):
    """The process has reached its limit of connections or of memory for request bodies."""

    status, slug, title = 503, "overloaded", "The server is overloaded"


class OutOfMemory(ServerProblem):
    """The device does not have enough memory for even one image at present."""

    status, slug, title = 503, "out-of-memory", "The device is out of memory"


class WorkerLost(ServerProblem):
    """Two workers died while computing the image, or one while loading the model. Do not retry: the request
    may be the cause."""

    status, slug, title = 500, "engine-lost", "A worker died while processing the request"


class DeadlinePassed(ServerProblem):
    """The deadline passed before the answer was ready."""

    status, slug, title = 504, "deadline-passed", "The deadline has passed"


class ModelLoadTooSlow(ServerProblem):
    """Loading another model took longer than `--load-limit-s`. The other models are still served."""

    status, slug, title = 504, "model-load-too-slow", "Loading the model took too long"


class InternalFault(ServerProblem):
    """A bug in the server, logged with the request ID, or an image whose scores are not finite."""

    status, slug, title = 500, "internal-fault", "Internal server error"


class InsufficientMemory(ServerProblem):
    """There is not enough memory to load another model; the detail gives the numbers."""

    status, slug, title = 507, "insufficient-memory", "Not enough memory for the model"
