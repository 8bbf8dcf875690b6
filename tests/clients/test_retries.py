"""When a request is sent again, and after how long."""

import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimvit_client import (
    ClientProblem,
    ConnectionFailed,
    DeadlinePassed,
    DeadlineUnmeetable,
    InternalFault,
    NotReady,
    QueueFull,
    Retries,
    ServerProblem,
    TimedOut,
    TrimViTError,
    UnexpectedAnswer,
    UnreadableImage,
    WorkerLost,
)
from trimvit_client.retries import retry_after_s

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


def refused(
    kind: type[ServerProblem] = QueueFull, status: int = 429, after: float | None = None
) -> ServerProblem:
    return kind(status, kind.slug or "new", "Title", "detail", retry_after_s=after)


SENT_AGAIN = [
    refused(),
    refused(NotReady, 503),
    refused(ServerProblem, 429),
    refused(ServerProblem, 503),
    ConnectionFailed("refused"),
    UnexpectedAnswer(502, "a proxy"),
    UnexpectedAnswer(503, "a proxy"),
]
GIVEN_UP = [
    refused(WorkerLost, 503),
    refused(DeadlinePassed, 504),
    refused(InternalFault, 500),
    refused(DeadlineUnmeetable, 503),
    ClientProblem(422, "invalid-value", "Title", "detail"),
    TimedOut("no answer"),
    UnexpectedAnswer(200, "another server"),
    UnexpectedAnswer(404, "another server"),
    UnreadableImage("gone"),
]


@pytest.mark.parametrize("error", SENT_AGAIN, ids=repr)
def test_what_may_succeed_later_is_sent_again(error: TrimViTError) -> None:
    """A full queue, a server that starts, a broken connection."""
    assert Retries().wait_s(1, error, math.inf, 0.0) == 0.25


@pytest.mark.parametrize("error", GIVEN_UP, ids=repr)
def test_what_would_fail_again_or_do_harm_is_not(error: TrimViTError) -> None:
    """The caller's faults, what is too late, and an image that workers died with."""
    assert Retries().wait_s(1, error, math.inf, 0.0) is None


def test_the_wait_doubles_up_to_the_longest() -> None:
    """0.5, 1, 2, 3, 3 seconds; after the last attempt none."""
    retries = Retries(attempts=6, first_wait_s=0.5, longest_wait_s=3.0)
    waits = [retries.wait_s(attempt, refused(), math.inf, 0.0) for attempt in range(1, 7)]
    assert waits == [0.5, 1.0, 2.0, 3.0, 3.0, None]


@given(st.integers(1, 100), st.floats(0, 60), st.floats(0, 1), st.floats(0, 100))
def test_retry_after_is_honoured(attempt: int, asked_s: float, jitter: float, left_s: float) -> None:
    """Never sooner than the server asks; never later than the deadline; not at all where it asks too much."""
    wait_s = Retries(attempts=1000).wait_s(attempt, refused(after=asked_s), left_s, jitter)
    if wait_s is None:
        assert asked_s > 30 or asked_s * (1 + jitter / 4) >= left_s
    else:
        assert asked_s <= wait_s <= 1.25 * asked_s
        assert wait_s < left_s


def test_a_header_holds_seconds_or_a_date() -> None:
    """RFC 9110's two forms; a date that has passed is no wait, and what is neither says nothing."""
    assert retry_after_s("120", NOW) == 120
    assert retry_after_s(" 0 ", NOW) == 0
    assert retry_after_s(format_datetime(NOW + timedelta(seconds=90), usegmt=True), NOW) == 90
    assert retry_after_s(format_datetime(NOW - timedelta(seconds=90), usegmt=True), NOW) == 0
    assert retry_after_s("Mon, 23 Nov 2026 12:00:07 -0000", NOW) == 7
    for nothing in (None, "", "soon", "-3", "1.5", "٣"):
        assert retry_after_s(nothing, NOW) is None


@given(st.text())
def test_no_header_is_a_fault(header: str) -> None:
    """Whatever a server sends."""
    found = retry_after_s(header, NOW)
    assert found is None or found >= 0


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"first_wait_s": -1}, {"first_wait_s": 9, "longest_wait_s": 8}], ids=str
)
def test_retries_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    """In words."""
    with pytest.raises(ValueError, match="must"):
        Retries(**wrong)  # type: ignore[arg-type]
