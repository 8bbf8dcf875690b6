"""Whether an image is admitted, by hand."""

import math

import pytest

from app.dispatch.policy.admission import (
    Ahead,
    Refusal,
    Streams,
    Wanted,
    ahead_of,
    place_of,
    refusal,
    starts_in,
)

IDLE = Streams([0.0, 0.0], idle=True, overhead_s=0.5, caution=2.0)
BUSY = Streams([1.0, 3.0], idle=False, overhead_s=0.5, caution=2.0)


def wanted(deadline_s: float = math.inf, wait_limit_s: float = math.inf) -> Wanted:
    """An image that takes a second in a batch of seven, and two by itself."""
    return Wanted(1.0, 2.0, 7, deadline_s, wait_limit_s)


@pytest.mark.parametrize(("work_s", "starts_s"), [(0.0, 1.0), (1.5, 2.5), (2.0, 3.0), (6.0, 5.0)])
def test_work_is_started_by_whichever_stream_is_free(work_s: float, starts_s: float) -> None:
    """The first is alone for two seconds, then there are two."""
    assert starts_in(work_s, [1.0, 3.0]) == starts_s


def test_each_batch_before_it_has_its_overhead() -> None:
    """Batches are full, or as large as a quarter of the deadline has room for."""
    assert ahead_of(wanted(), 14.0, IDLE) == Ahead(14.0 + 2 * 0.5, 7.5)
    assert ahead_of(wanted(8.0), 14.0, IDLE) == Ahead(14.0 + 7 * 0.5, 8.75)
    assert ahead_of(wanted(), 0.0, BUSY) == Ahead(0.0, 1.0)


def test_an_image_may_wait_for_what_its_own_batch_leaves() -> None:
    """With caution. Where there is a queue others are behind it; on idle workers it is alone."""
    place = place_of(wanted(16.0), Ahead(4.0, 3.0), BUSY)
    assert (place.wait_s, place.batch_slack_s) == (3.0, 4.0 / 2)
    assert place.spare_s == 16.0 / 2 - 2.0 - (0.5 + 1.0)
    assert place_of(wanted(16.0), Ahead(0.0, 0.0), IDLE).spare_s == 16.0 / 2 - 2.0


def test_a_refusal_says_when_the_image_could_be_admitted() -> None:
    """By its deadline or by the limit; never where idle workers would be late too."""
    behind = Ahead(4.0, 3.0)
    assert refusal(wanted(16.0), behind, BUSY) is None
    assert refusal(wanted(11.0), behind, BUSY) == Refusal("deadline-unmeetable", 3.0 - (5.5 - 1.75 - 1.5))
    assert refusal(wanted(16.0, 2.5), behind, BUSY) == Refusal("queue-full", 0.5)
    assert refusal(wanted(2.9), Ahead(0.0, 0.0), IDLE) == Refusal("deadline-unmeetable", None)
