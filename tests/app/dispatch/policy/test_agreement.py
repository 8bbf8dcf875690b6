"""Live agreement: what is drawn, held and counted."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from app.dispatch.policy.agreement import BUCKETS, MOST_HELD, Agreement, Check, bucket_of


def checks(bucket: str, outcome: str) -> float | None:
    labels = {"ratio_bucket": bucket, "outcome": outcome}
    return REGISTRY.get_sample_value("trimvit_agreement_checks_total", labels)


def check(hold: int, keep_ratio: float = 0.5, worker: int = 1) -> Check:
    return Check(worker, hold, label=3, keep_ratio=keep_ratio)


@pytest.mark.parametrize(
    ("keep_ratio", "bucket"),
    [(0.01, "0-0.1"), (0.1, "0-0.1"), (0.3, "0.2-0.3"), (0.31, "0.3-0.4"), (0.7, "0.6-0.7"), (0.95, "0.9-1")],
)
def test_a_ratio_belongs_to_the_tenth_below_it(keep_ratio: float, bucket: str) -> None:
    """As in the histograms of ratios, a bucket holds its upper edge."""
    assert bucket_of(keep_ratio) == bucket


@given(st.floats(min_value=0, max_value=1, exclude_min=True))
def test_every_ratio_has_a_bucket(keep_ratio: float) -> None:
    """And its bucket's edges lie around it."""
    low, high = map(float, bucket_of(keep_ratio).split("-"))
    assert low < keep_ratio <= high


def test_what_is_held_comes_in_order_and_no_more_than_a_few() -> None:
    """Memory is bounded: what comes while all places are taken takes the oldest one's."""
    agreement = Agreement(1.0, lambda: 0.0)
    for hold in range(MOST_HELD + 3):
        agreement.answered(check(hold))
    assert repr(agreement) == f"<Agreement of 1 of the images, {MOST_HELD} held>"
    assert [agreement.take() for _ in range(MOST_HELD)] == [check(hold) for hold in range(3, MOST_HELD + 3)]
    assert agreement.take() is None


def test_what_was_not_pruned_is_not_run_again() -> None:
    """It would agree with itself, and cost the most."""
    agreement = Agreement(1.0, lambda: 0.0)
    agreement.answered(check(1, keep_ratio=1.0))
    assert agreement.take() is None


def test_what_a_lost_worker_held_is_forgotten() -> None:
    """Its pixels are gone; what others hold is still run."""
    agreement = Agreement(1.0, lambda: 0.0)
    for hold, worker in enumerate((1, 2, 1)):
        agreement.answered(check(hold, worker=worker))
    agreement.lost(1)
    assert agreement.take() == check(1, worker=2)
    assert agreement.take() is None


def test_with_a_share_of_nothing_nothing_is_drawn() -> None:
    """Off by default means off."""
    assert Agreement(0.0, lambda: 0.0).draw() is None


def test_the_share_is_drawn_by_chance_and_each_has_a_number_of_its_own() -> None:
    """About the share of the images, whatever their order."""
    agreement = Agreement(0.25, random.Random(7).random)
    drawn = [number for number in (agreement.draw() for _ in range(4000)) if number is not None]
    assert 900 < len(drawn) < 1100
    assert len(set(drawn)) == len(drawn)


def test_agreement_is_counted_by_bucket() -> None:
    """One check counts once, in its bucket, as agreed or not; all buckets are there from the start."""
    agreement = Agreement(0.1)
    before = {
        (bucket, outcome): checks(bucket, outcome)
        for bucket in BUCKETS
        for outcome in ("agreed", "disagreed")
    }
    assert None not in before.values()
    agreement.found(check(1, 0.5), 3)
    agreement.found(check(2, 0.45), 4)
    agreement.found(check(3, 0.8), 3)
    risen = {key: (checks(*key) or 0) - (value or 0) for key, value in before.items()}
    assert {key for key, rise in risen.items() if rise} == {
        ("0.4-0.5", "agreed"),
        ("0.4-0.5", "disagreed"),
        ("0.7-0.8", "agreed"),
    }
    assert set(risen.values()) == {0, 1}
