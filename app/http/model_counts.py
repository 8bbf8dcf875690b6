"""Metrics of the requests for each model, for the statistics of the Open Inference Protocol."""

import time
from collections.abc import Sequence
from typing import Protocol

from starlette.types import Scope

from app.errors import Problem
from app.http.arrival import seconds_since, seconds_since_answered
from app.messages.to_front_end import Answer
from app.telemetry import metrics, tallies

SUCCESS, FAIL = "success", "fail"


class Timed(Protocol):
    """An image that was answered."""

    @property
    def answer(self) -> Answer:
        """The answer, with its times of waiting and computing."""

    @property
    def decode_s(self) -> float:
        """The seconds of decoding."""

    @property
    def cached(self) -> bool | None:
        """Whether it is from the answer cache. None if there is no cache."""


def count(images: Sequence[Timed | Problem], model: str, scope: Scope) -> None:
    """Count a request whose answer has been written. If no image was answered, it counts as failed. Its
    phases are those of the image that took longest, so that their sum is not above the time of the request.
    If all answers are from the cache, only the writing is counted."""
    answered = [image for image in images if not isinstance(image, Problem)]
    if not answered:
        failed(model, scope)
        return
    tallies.observe(metrics.MODEL_REQUEST_SECONDS, seconds_since(scope), model, SUCCESS)
    tallies.observe(metrics.MODEL_REQUEST_IMAGES, len(answered), model)
    tallies.observe(metrics.MODEL_LAST_REQUEST, time.time(), model)
    tallies.observe(metrics.MODEL_PHASE_SECONDS, seconds_since_answered(scope), model, "render")
    computed = [image for image in answered if not image.cached]
    if computed:
        slowest = max(computed, key=_seconds)
        for phase, seconds in (
            ("decode", slowest.decode_s),
            ("queue", slowest.answer.queue_s),
            ("compute", slowest.answer.compute_s),
        ):
            tallies.observe(metrics.MODEL_PHASE_SECONDS, seconds, model, phase)


def failed(model: str, scope: Scope) -> None:
    """Count a request that was read, and then ended in a problem or with a disconnect."""
    tallies.observe(metrics.MODEL_REQUEST_SECONDS, seconds_since(scope), model, FAIL)


def _seconds(image: Timed) -> float:
    return image.decode_s + image.answer.queue_s + image.answer.compute_s
