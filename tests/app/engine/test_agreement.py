"""Live agreement: what is drawn, held and counted."""

import asyncio
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from app.engine.agreement import BUCKETS, MOST_HELD, Agreement, Check, bucket_of
from app.engine.loop import Job, Result
from models.schedule import UNPRUNED
from tests.app.engine.rig import (
    ONE_STREAM,
    FakeBackend,
    ask_behind,
    begun,
    question,
    ready_client,
    running_engine,
    until,
)

pytestmark = pytest.mark.anyio


def checks(bucket: str, outcome: str) -> float | None:
    labels = {"ratio_bucket": bucket, "outcome": outcome}
    return REGISTRY.get_sample_value("trimvit_agreement_checks_total", labels)


def engine_waits(images: int) -> bool:
    return REGISTRY.get_sample_value("trimvit_queue_images", {"engine": "engine-0"}) == images


def always() -> float:
    return 0.0


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
    agreement = Agreement(1.0, always)
    for number in range(MOST_HELD + 3):
        agreement.answered(bytes([number]), number, 0.5)
    assert repr(agreement) == f"<Agreement of 1 of the images, {MOST_HELD} held>"
    taken = [agreement.take() for _ in range(MOST_HELD + 1)]
    assert taken == [*(Check(bytes([number]), number, 0.5) for number in range(3, MOST_HELD + 3)), None]


def test_an_unpruned_image_is_not_run_again() -> None:
    """It would agree with itself, and cost the most."""
    agreement = Agreement(1.0, always)
    agreement.answered(b"whole", 1, 1.0)
    assert agreement.take() is None


def test_with_a_share_of_nothing_nothing_is_held() -> None:
    """Off by default means off."""
    agreement = Agreement(0.0, always)
    agreement.answered(b"image", 1, 0.5)
    assert agreement.take() is None


def test_the_share_is_drawn_by_chance() -> None:
    """About the share of the images, whatever their order."""
    agreement = Agreement(0.25, random.Random(7).random)
    taken = 0
    for _ in range(4000):
        agreement.answered(b"image", 1, 0.5)
        taken += agreement.take() is not None
    assert 900 < taken < 1100


def test_agreement_is_counted_by_bucket() -> None:
    """One check counts once, in its bucket, as agreed or not; all buckets are there from the start."""
    agreement = Agreement(0.1)
    before = {
        (bucket, outcome): checks(bucket, outcome)
        for bucket in BUCKETS
        for outcome in ("agreed", "disagreed")
    }
    assert None not in before.values()
    agreement.found(Check(b"image", 3, 0.5), 3)
    agreement.found(Check(b"image", 3, 0.45), 4)
    agreement.found(Check(b"image", 3, 0.8), 3)
    risen = {key: (checks(*key) or 0) - (value or 0) for key, value in before.items()}
    assert {key for key, rise in risen.items() if rise} == {
        ("0.4-0.5", "agreed"),
        ("0.4-0.5", "disagreed"),
        ("0.7-0.8", "agreed"),
    }
    assert set(risen.values()) == {0, 1}


# In the engine.


async def test_an_answered_image_is_run_again_unpruned(address: str) -> None:
    """Alone, for its first label only; it counts as a check, and as nothing else."""
    agreement = Agreement(1.0, always)
    before = {outcome: checks("0.4-0.5", outcome) or 0 for outcome in ("agreed", "disagreed")}
    images = REGISTRY.get_sample_value("trimvit_batch_images_sum") or 0
    backend = FakeBackend(ONE_STREAM, swayed={2})
    with running_engine(backend, address, agreement=agreement):
        async with ready_client(address) as client:
            for number in (1, 2, 3):
                found = await client.classify(question(number, keep_ratio=0.5, kept_patches=True))
                assert found.answer.classes[0] == number
                await begun(backend)
                assert await begun(backend) == [number]
            await client.classify(question(4))
            await until(lambda: checks("0.4-0.5", "agreed") == before["agreed"] + 2, "two to agree")
            await until(lambda: checks("0.4-0.5", "disagreed") == before["disagreed"] + 1, "one not to")
    assert backend.numbers == [1, 1, 2, 2, 3, 3, 4]
    again = [backend.seen[place].submit for place in (1, 3, 5)]
    assert {(one.pruning, one.top_k, one.kept_patches, one.margin) for one in again} == {
        (UNPRUNED, 1, False, None)
    }
    assert backend.threads[1] == 1
    assert REGISTRY.get_sample_value("trimvit_batch_images_sum") == images + 4


async def test_users_images_go_first(address: str) -> None:
    """Nothing is run again while an image waits or runs."""
    backend = FakeBackend(ONE_STREAM)
    with running_engine(backend, address, agreement=Agreement(1.0, always)):
        async with ready_client(address) as client:
            questions = [question(number, keep_ratio=0.5) for number in (1, 2, 3)]
            asked = await ask_behind(client, backend, *questions)
            await until(lambda: engine_waits(2), "two images to wait")
            backend.may_answer.set()
            await asyncio.gather(*asked)
            await until(lambda: len(backend.numbers) == 6, "all to be run again")
    assert sorted(backend.numbers[:3]) == [1, 2, 3]
    assert sorted(backend.numbers[3:]) == [1, 2, 3]


async def test_a_check_that_fails_counts_for_nothing(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """The log has it, and the engine goes on."""

    class FailsUnpruned(FakeBackend):
        def classify(self, jobs: Sequence[Job], threads: int) -> Sequence[Result]:
            if jobs[0].submit.pruning == UNPRUNED:
                raise RuntimeError("out of memory")
            return super().classify(jobs, threads)

    before = checks("0.4-0.5", "agreed"), checks("0.4-0.5", "disagreed")
    with running_engine(FailsUnpruned(ONE_STREAM), address, agreement=Agreement(1.0, always)):
        async with ready_client(address) as client:
            for number in (1, 2):
                await client.classify(question(number, keep_ratio=0.5))
                await until(
                    lambda number=number: caplog.text.count("unpruned failed") == number, "the failure"
                )
    assert (checks("0.4-0.5", "agreed"), checks("0.4-0.5", "disagreed")) == before


async def test_by_default_nothing_is_run_again(address: str) -> None:
    """An engine computes what it is asked."""
    backend = FakeBackend(ONE_STREAM)
    with running_engine(backend, address):
        async with ready_client(address) as client:
            for number in (1, 2):
                await client.classify(question(number, keep_ratio=0.5))
    assert backend.numbers == [1, 2]
