"""The cost model: learned from a warm-up, kept up while serving, and never led astray by one batch."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dispatch.policy.cost import CostModel, fit
from app.messages.capacity import Measured, Work

# What a worker may be like: a constant, seconds for an image, seconds for an unpruned image's compute.
CONSTANT, IMAGE, UNPRUNED = 0.004, 0.0015, 0.023


def seconds_of(work: Work, pace: float = 1.0) -> float:
    return pace * (CONSTANT + IMAGE * work.images + UNPRUNED * work.compute)


def works() -> list[Work]:
    return [Work(images, images * share) for images in (1, 3, 7, 13) for share in (1.0, 0.7, 0.43)]


def warm_up(threads: int = 1, pace: float = 1.0, noise: float = 0.0) -> list[Measured]:
    draw = random.Random(7)
    return [
        Measured(threads, work, seconds_of(work, pace) * math.exp(draw.gauss(0, noise))) for work in works()
    ]


def test_a_line_is_found_again() -> None:
    """Measurements without noise give back the coefficients they were made with."""
    assert fit(warm_up()) == pytest.approx([CONSTANT, IMAGE, UNPRUNED], rel=1e-6)


def test_an_outlier_does_not_spoil_the_warm_up() -> None:
    """One batch of thirteen that took fifty times as long leaves the predictions as they are."""
    spoilt = [*warm_up(noise=0.01), Measured(1, Work(7, 7.0), 50 * seconds_of(Work(7, 7.0)))]
    model = CostModel.learned(spoilt)
    for work in works():
        assert model.predict(work, 1) == pytest.approx(seconds_of(work), rel=0.05)


def test_no_coefficient_is_negative() -> None:
    """Where more work took less time the prediction is flat, not falling."""
    falling = [Measured(1, Work(images, images * 0.5), 1.0 / images) for images in (1, 2, 5)]
    assert (fit(falling) >= 0).all()


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_a_time_that_cannot_be_is_refused(seconds: float) -> None:
    """Durations are above 0 and finite."""
    with pytest.raises(ValueError, match="seconds must be above 0"):
        Measured(1, Work(1, 1.0), seconds)


def test_without_measurements_there_is_no_model() -> None:
    """Nothing can be learned from nothing."""
    with pytest.raises(ValueError, match="no batch was measured"):
        CostModel.learned([])
    with pytest.raises(ValueError, match="no batch was measured"):
        fit([])


def test_each_number_of_threads_has_its_own_prediction_and_the_next_one_stands_in() -> None:
    """Two threads are not one; where three were never measured, four come nearest."""
    model = CostModel.learned([*warm_up(1), *warm_up(4, pace=0.3)])
    work = Work(5, 3.0)
    assert model.predict(work, 1) == pytest.approx(seconds_of(work))
    assert model.predict(work, 4) == model.predict(work, 3) == pytest.approx(0.3 * seconds_of(work))


def test_a_batch_is_its_overhead_and_its_images() -> None:
    """What the scheduler adds up is what would be predicted for the whole."""
    model = CostModel.learned(warm_up())
    whole = model.overhead_s(1) + 2 * model.image_s(1.0, 1) + model.image_s(0.25, 1)
    assert whole == pytest.approx(model.predict(Work(3, 2.25), 1))


def test_one_outlier_while_serving_moves_a_prediction_by_a_few_percent() -> None:
    """A batch that something held up for a minute is not believed."""
    model = CostModel.learned(warm_up())
    before = model.predict(Work(8, 8.0), 1)
    model.observe(Measured(1, Work(8, 8.0), 60.0))
    assert before < model.predict(Work(8, 8.0), 1) < 1.03 * before


@pytest.mark.parametrize("pace", [0.2, 0.7, 1.4, 10.0])
def test_a_device_that_has_changed_is_followed(pace: float) -> None:
    """After three hundred batches at another pace, predictions are right again to a fifth."""
    model = CostModel.learned(warm_up())
    draw = random.Random(3)
    for _ in range(300):
        work = draw.choice(works())
        model.observe(Measured(1, work, seconds_of(work, pace)))
    for work in works():
        assert model.predict(work, 1) == pytest.approx(seconds_of(work, pace), rel=0.2)


def test_serving_one_kind_of_batch_for_long_spoils_no_other() -> None:
    """A day of single images with some noise leaves the prediction for large batches sensible."""
    model = CostModel.learned(warm_up())
    draw = random.Random(5)
    for _ in range(20_000):
        model.observe(Measured(1, Work(1, 0.5), seconds_of(Work(1, 0.5)) * math.exp(draw.gauss(0, 0.1))))
    for work in works():
        assert model.predict(work, 1) == pytest.approx(seconds_of(work), rel=0.25)


def test_the_error_is_that_of_the_prediction_before_it_was_put_right() -> None:
    """Above 0 the batch took longer than predicted, below 0 shorter."""
    model = CostModel.learned(warm_up())
    work = Work(3, 2.0)
    assert model.observe(Measured(1, work, 1.5 * seconds_of(work))) == pytest.approx(0.5)
    model = CostModel.learned(warm_up())
    assert model.observe(Measured(1, work, 0.75 * seconds_of(work))) == pytest.approx(-0.25)


def test_caution_covers_99_batches_of_100() -> None:
    """The factor grows where predictions are exceeded, and goes back to 1 where they hold."""
    model = CostModel.learned(warm_up())
    draw = random.Random(11)
    exceeded = 0
    for number in range(4000):
        work = draw.choice(works())
        actual = seconds_of(work) * math.exp(draw.gauss(0, 0.15))
        if number >= 2000:
            exceeded += actual > model.caution * model.predict(work, 1)
        model.observe(Measured(1, work, actual))
    assert 0.005 < exceeded / 2000 < 0.02
    assert 1.1 < model.caution < 1.6
    for _ in range(2000):
        model.observe(Measured(1, Work(2, 1.0), 0.999 * model.predict(Work(2, 1.0), 1)))
    assert model.caution == 1.0


measured_batches = st.lists(
    st.builds(
        lambda images, share, seconds: Measured(1, Work(images, images * share), seconds),
        st.integers(1, 300),
        st.floats(0.05, 2),
        st.floats(1e-5, 1e3),
    ),
    min_size=1,
    max_size=30,
)


@given(measured_batches, measured_batches)
def test_predictions_are_positive_and_rise_with_the_work(
    warm: list[Measured], served: list[Measured]
) -> None:
    """Whatever was measured."""
    model = CostModel.learned(warm)
    for batch in served:
        model.observe(batch)
    assert 1 <= model.caution <= 2
    previous = 0.0
    for images, compute in ((1, 0.3), (1, 1.0), (2, 1.0), (2, 1.9), (40, 39.0)):
        predicted = model.predict(Work(images, compute), 1)
        assert math.isfinite(predicted)
        assert predicted >= previous
        assert predicted > 0
        previous = predicted
    assert np.isfinite(model.overhead_s(1))
    assert model.image_s(0.01, 1) > 0  # the scheduler divides by it
