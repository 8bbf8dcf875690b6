"""Entries for the tests of queue and scheduler."""

from collections.abc import Hashable

from app.engine.brown_out import DEPTHS
from app.engine.fair_queue import Entry, Priority

INFINITE = float("inf")


def entry(
    key: Hashable,
    tokens: int = 10,
    seconds: float | None = None,
    *,
    falls: float = 0.0,
    alone_s: float | None = None,
    arrived: float = 0.0,
    deadline: float = INFINITE,
    wait_limit_s: float = INFINITE,
    caller: str = "",
    priority: Priority = "normal",
) -> Entry:
    """An image that takes as many milliseconds as it has tokens, unless told otherwise; by every depth of a
    brown-out it ``falls`` by that share of both."""
    seconds = tokens / 1000 if seconds is None else seconds
    alone_s = seconds if alone_s is None else alone_s
    shares = [1 - falls * depth for depth in range(DEPTHS)]
    return Entry(
        key,
        tuple(max(1, round(tokens * share)) for share in shares),
        tuple(seconds * share for share in shares),
        tuple(alone_s * share for share in shares),
        arrived,
        deadline,
        wait_limit_s,
        caller,
        priority,
    )
