"""Everything that can go wrong, by whose fault it is.

A server's refusal is a `Problem`, made of its `application/problem+json` (RFC 9457): a `ClientProblem` where
the request is at fault and would fail again, a `ServerProblem` where the server is.
"""

from collections.abc import Mapping
from typing import ClassVar

_PREFIX = "urn:trimvit:problem:"


class TrimViTError(Exception):
    """Anything that this client raises for a request."""


class ConnectionFailed(TrimViTError):
    """No answer came: the server cannot be reached, or the connection broke."""


class TimedOut(TrimViTError):
    """No answer came in time: within ``timeout``, or before the deadline."""


class UnreadableImage(TrimViTError):
    """A file of the caller's cannot be read; nothing was sent."""


class UnexpectedAnswer(TrimViTError):
    """An answer came that is not a TrimViT server's: a proxy's page, or the wrong address."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Problem(TrimViTError):
    """The server's refusal, in its own words.

    ``type`` names it (`queue-full`), ``detail`` says what was wrong and what is allowed. ``request_id`` is
    what the server's log has it under; ``retry_after_s`` how long it asks to wait.
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
    """The body is not what its Content-Type says."""

    slug = "unreadable-request"


class Unauthorized(ClientProblem):
    """The server asks for an API key, and there was none or not a valid one."""

    slug = "unauthorized"


class PriorityNotAllowed(ClientProblem):
    """The priority is above what the server's operator allows this caller."""

    slug = "priority-not-allowed"


class TooLarge(ClientProblem):
    """More bytes or pixels than the server allows."""

    slug = "too-large"


class UnsupportedMediaType(ClientProblem):
    """An image of a format that the server does not take."""

    slug = "unsupported-media-type"


class InvalidValue(ClientProblem):
    """An option is unknown or out of range."""

    slug = "invalid-value"


class UndecodableImage(ClientProblem):
    """The bytes are not a complete, sound image."""

    slug = "undecodable-image"


class QueueFull(ServerProblem):
    """More images are waiting than the server's queue holds."""

    slug = "queue-full"


class NotReady(ServerProblem):
    """No worker has a model loaded and answers."""

    slug = "not-ready"


class WorkerLost(ServerProblem):
    """Workers died while they had the image. It is not sent again: it may be what they died of."""

    slug = "engine-lost"


class DeadlineUnmeetable(ServerProblem):
    """The server foresees that the answer would come too late."""

    slug = "deadline-unmeetable"


class DeadlinePassed(ServerProblem):
    """The server gave up: the answer would have come too late."""

    slug = "deadline-passed"


class InternalFault(ServerProblem):
    """A bug of the server's; its log has the rest under ``request_id``."""

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
    """The exception for a problem document. One whose type is not known here goes by its status."""
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
