"""All exceptions, by whose fault it is.

An error of the server is a `Problem`, made from its `application/problem+json` (RFC 9457): a `ClientProblem`
if the request is at fault and would fail again, a `ServerProblem` if the server is.
"""

from collections.abc import Mapping
from typing import ClassVar

_PREFIX = "urn:trimvit:problem:"


class TrimViTError(Exception):
    """The base class of all exceptions that this client raises for a request."""


class ConnectionFailed(TrimViTError):
    """There is no answer: the server cannot be reached, or the connection broke."""


class TimedOut(TrimViTError):
    """There was no answer in time: within ``timeout``, or before the deadline."""


class UnreadableImage(TrimViTError):
    """A file cannot be read. Nothing was sent."""


class UnexpectedAnswer(TrimViTError):
    """The answer is not from a TrimViT server: a proxy's error page, or the wrong address."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Problem(TrimViTError):
    """An error of the server.

    ``type`` names it (`queue-full`), ``detail`` says what was wrong and what is allowed. ``request_id``
    identifies the request in the server's log. ``retry_after_s`` is the time to wait before a retry.
    """

    slug: ClassVar[str | None] = None

    def __init__(
        self,
        status: int,
        type: str,  # noqa: A002  RFC 9457's name
        title: str,
        detail: str,
        *,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail or title or f"status {status}")
        self.status = status
        self.type = type
        self.title = title
        self.detail = detail
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.status}, {self.type!r}, {self.detail!r})"


class ClientProblem(Problem):
    """The request is at fault; sending it again unchanged will fail again."""


class ServerProblem(Problem):
    """The server cannot process the request now; the same request may succeed later."""


class UnreadableRequest(ClientProblem):
    """The body does not match its Content-Type."""

    slug = "unreadable-request"


class Unauthorized(ClientProblem):
    """The server requires an API key, and it is missing or not valid."""

    slug = "unauthorized"


class PriorityNotAllowed(ClientProblem):
    """The priority is higher than the server's operator allows this caller."""

    slug = "priority-not-allowed"


class TooLarge(ClientProblem):
    """More bytes or pixels than the server allows."""

    slug = "too-large"


class UnsupportedMediaType(ClientProblem):
    """The server does not support the format of the image."""

    slug = "unsupported-media-type"


class InvalidValue(ClientProblem):
    """An option is unknown or out of range."""

    slug = "invalid-value"


class UndecodableImage(ClientProblem):
    """The bytes are not a complete, valid image."""

    slug = "undecodable-image"


class QueueFull(ServerProblem):
    """Too many images are waiting at the server."""

    slug = "queue-full"


class NotReady(ServerProblem):
    """No worker is ready."""

    slug = "not-ready"


class WorkerLost(ServerProblem):
    """Workers died while computing the image. It is not sent again, because it may be the cause."""

    slug = "engine-lost"


class DeadlineUnmeetable(ServerProblem):
    """The server predicts that the answer would come after the deadline."""

    slug = "deadline-unmeetable"


class DeadlinePassed(ServerProblem):
    """The deadline passed before the answer was ready."""

    slug = "deadline-passed"


class InternalFault(ServerProblem):
    """A bug in the server. Its log has the details under ``request_id``."""

    slug = "internal-fault"


_NAMED: dict[str, type[Problem]] = {
    kind.slug: kind
    for side in (ClientProblem, ServerProblem)
    for kind in side.__subclasses__()
    if kind.slug is not None
}
_TOO_MANY = 429


def problem_of(
    status: int, document: Mapping[str, object], request_id: str | None, retry_after_s: float | None
) -> Problem:
    """The exception for a problem document. For an unknown type, the status decides."""
    slug = str(document.get("type", "")).removeprefix(_PREFIX)
    by_status = ClientProblem if 400 <= status < 500 and status != _TOO_MANY else ServerProblem
    return _NAMED.get(slug, by_status)(
        status,
        slug,
        str(document.get("title", "")),
        str(document.get("detail", "")),
        request_id=request_id,
        retry_after_s=retry_after_s,
    )
