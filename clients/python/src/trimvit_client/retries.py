"""When a request is sent again, and after how long. Without clock and network."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from trimvit_client.errors import (
    ConnectionFailed,
    DeadlineUnmeetable,
    ServerProblem,
    TrimViTError,
    UnexpectedAnswer,
    WorkerLost,
)

_TOO_MANY, _BAD_GATEWAY, _UNAVAILABLE = 429, 502, 503


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a request is sent again, and how long to wait.

    Requests are only sent again if they may well succeed: after a full queue or a server that is not ready
    (429, 502, 503), and after a connection that could not be opened or broke. Classifying changes nothing in
    the server, so an interrupted request can be sent twice. There is no retry after a timeout (the server may
    still be computing, and more requests would make it worse), after a deadline that has passed, or for an
    image that workers died with.

    ``attempts`` includes the first one. The wait is the server's Retry-After, otherwise ``first_wait_s``,
    doubled each time up to ``longest_wait_s``. It is extended at random by up to a quarter, so that clients
    that were refused together do not return together. A Retry-After above ``longest_wait_s`` is not waited
    for: the error is raised, with its ``retry_after_s``.
    """

    attempts: int = 4
    first_wait_s: float = 0.25
    longest_wait_s: float = 30.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")
        if not 0 <= self.first_wait_s <= self.longest_wait_s < math.inf:
            raise ValueError(
                f"waits must ascend from 0, got first_wait_s={self.first_wait_s} and "
                f"longest_wait_s={self.longest_wait_s}"
            )

    def wait_s(self, attempt: int, error: TrimViTError, left_s: float, jitter: float) -> float | None:
        """The seconds until the next attempt after the failure of number ``attempt`` (from 1). None to give
        up.

        ``left_s`` is the time until the deadline, ``jitter`` a random number from 0 to 1.
        """
        if attempt >= self.attempts or not may_succeed_later(error):
            return None
        asked_s = error.retry_after_s if isinstance(error, ServerProblem) else None
        if asked_s is not None and asked_s > self.longest_wait_s:
            return None
        backoff_s = min(self.first_wait_s * 2.0 ** min(attempt - 1, 64), self.longest_wait_s)
        wait_s = (backoff_s if asked_s is None else asked_s) * (1 + jitter / 4)
        return wait_s if wait_s < left_s else None


def may_succeed_later(error: TrimViTError) -> bool:
    """Whether sending the same request again is both safe and likely to succeed."""
    match error:
        case ConnectionFailed():
            return True
        case WorkerLost():
            return False
        case DeadlineUnmeetable():
            return error.retry_after_s is not None
        case ServerProblem() | UnexpectedAnswer():
            return error.status in (_TOO_MANY, _BAD_GATEWAY, _UNAVAILABLE)
    return False


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """The seconds to wait according to a Retry-After header (RFC 9110, section 10.2.3: seconds or a date).
    None if there is none that can be read."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - now).total_seconds())
