"""What a load came to, in numbers worked out by hand."""

import math

from hypothesis import given
from hypothesis import strategies as st

from app.commands.load import Outcome, Sample
from app.commands.summary import percentile, percentiles_ms, summarise


def sample(due: float, sent: float, done: float, ratio: float | None = None, **outcome: object) -> Sample:
    return Sample(due, sent, done, ratio, Outcome(**{"status": "200", **outcome}))  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], percent: float) -> None:
    """The smallest such, by the definition."""
    found = percentile(sorted(values), percent)
    assert found in values
    wanted = max(1, math.ceil(round(percent / 100 * len(values), 9)))
    assert sum(value <= found for value in values) >= wanted
    assert sum(value < found for value in values) < wanted


def test_percentiles_by_hand() -> None:
    """Of 1 to 200 ms: the 100th value, the 180th, ..., the last."""
    assert percentiles_ms([value / 1000 for value in range(200, 0, -1)]) == {
        "p50": 100.0, "p90": 180.0, "p95": 190.0, "p99": 198.0, "p99.9": 200.0, "max": 200.0,
    }  # fmt: skip
    assert percentiles_ms([]) == {}


def test_a_summary_counts_what_was_due_after_the_warm_up() -> None:
    """Latencies of what was answered, from when it was due; throughput by when answers came."""
    summary = summarise(
        [
            sample(0.5, 0.5, 1.0, 0.5, compute=0.4),  # warm-up
            sample(1.5, 1.5, 2.25, 0.5, compute=0.4),  # of the warm-up, answered after it
            sample(2.0, 2.25, 2.5, 0.5, compute=0.4),
            sample(3.0, 3.0, 4.0, 1.0, compute=1.0),
            sample(4.0, 4.0, 4.125, 1.0, status="429", problem="queue-full"),
            sample(5.0, 5.0, 35.0, 0.5, status="timeout"),
            sample(5.5, 5.5, 6.5, 1.0, compute=1.0),  # answered after the end
        ],
        warmup_s=2.0,
        duration_s=4.0,
    )
    assert (summary.images, summary.answered) == (5, 3)
    assert summary.images_per_s == 3 / 4
    assert summary.by_status == {"200": 3, "429": 1, "timeout": 1}
    assert summary.by_problem == {"queue-full": 1}
    assert summary.mean_compute == 0.8
    assert (summary.latency_ms["p50"], summary.latency_ms["max"]) == (1000.0, 1000.0)
    assert summary.latency_from_send_ms["p50"] == 1000.0
    assert summary.late_ms["max"] == 250.0
    half, whole = summary.by_keep_ratio
    assert (half.keep_ratio, half.images, half.answered, half.mean_compute) == (0.5, 2, 1, 0.4)
    assert half.latency_ms["max"] == 500.0
    assert (whole.keep_ratio, whole.images, whole.answered, whole.mean_compute) == (1.0, 3, 2, 1.0)


def test_nothing_answered_is_no_fault() -> None:
    """Of the summary: it has no latencies then."""
    summary = summarise([sample(0, 0, 30, status="timeout")], 0.0, 1.0)
    assert (summary.images, summary.answered, summary.mean_compute) == (1, 0, None)
    assert summary.latency_ms == summary.by_keep_ratio[0].latency_ms == {}
