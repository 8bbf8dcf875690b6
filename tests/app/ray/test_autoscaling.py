"""The number of replicas for the current work."""

from types import SimpleNamespace
from typing import Any

import pytest

from app.ray.autoscaling import WORK, replicas_for_work


def context(work: dict[str, float], queued: float | None = 0.0, target: float = 4.0) -> Any:
    return SimpleNamespace(
        aggregated_metrics={WORK: work} if work else {},
        total_queued_requests=queued,
        config=SimpleNamespace(target_ongoing_requests=target),
    )


@pytest.mark.parametrize(
    ("work", "queued", "replicas"),
    [({}, 0.0, 0.0), ({"a": 6.0}, 0.0, 1.5), ({"a": 6.0, "b": 2.0}, 0.0, 2.0), ({"a": 1.0}, 7.0, 2.0)],
)
def test_replicas_follow_the_work(work: dict[str, float], queued: float, replicas: float) -> None:
    """The work of all replicas and what waits for one, over the target; Ray rounds and bounds it."""
    assert replicas_for_work(context(work, queued)) == (replicas, {})


def test_before_anything_is_reported_nothing_is_asked_for() -> None:
    """Ray gives None for queues it has not heard of yet."""
    assert replicas_for_work(context({}, None)) == (0.0, {})
