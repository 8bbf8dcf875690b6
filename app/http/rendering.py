"""Answered images -> their results as JSON, and how long each phase took."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from starlette.types import Scope

from app.decoding.image_work import ImageWork
from app.errors import Problem
from app.http.answers import longest, problem_json, result_json
from app.http.arrival import seconds_since
from app.http.callers import caller_of
from app.http.images import AnsweredImage, RequestedImage
from app.http.model_counts import count
from app.messages.image import Prediction
from app.messages.model import ModelInfo
from app.telemetry import metrics, tallies

# Writing more labels, or values that take the same time, would block the event loop for too long.
_MOST_VALUES_AT_ONCE = 500
_FEATURES_OF_A_LABEL = 8  # this many feature values take as long as the three members of a label
_FLOAT_BYTES = 4

Render = Callable[..., bytes]


def timings_ms(images: Sequence[AnsweredImage | Problem], model: ModelInfo, scope: Scope) -> dict[str, float]:
    """Milliseconds of each phase (the longest of several images) and since the request of this ``scope``
    arrived, whose answer has been written. Counted in the metrics by image, and as one request to the
    model."""
    count(images, model.name, scope)
    total_s = seconds_since(scope)
    answered = [image for image in images if not isinstance(image, Problem)]
    timings = {
        "decode": longest([image.decode_s for image in answered]),
        "queue": longest([image.answer.queue_s for image in answered]),
        "compute": longest([image.answer.compute_s for image in answered]),
        "total": longest([total_s]),
    }
    for image in answered:
        if not image.cached:  # cached answers skip these phases
            tallies.observe(metrics.PHASE_SECONDS, image.decode_s, "decode")
            tallies.observe(metrics.PHASE_SECONDS, image.answer.queue_s, "queue")
            tallies.observe(metrics.PHASE_SECONDS, image.answer.compute_s, "compute")
        tallies.observe(metrics.PHASE_SECONDS, total_s, "total")
    return timings


async def results_of(
    scope: Scope,
    images: Sequence[RequestedImage],
    answered: Sequence[AnsweredImage | Problem],
    model: ModelInfo,
    work: ImageWork,
    render: Render = result_json,
) -> list[bytes]:
    """The result of each image, by ``render``, or its problem, as JSON. Large ones are rendered image by
    image off the event loop, so that other callers' work runs in between."""
    tasks = [
        partial(problem_json, one)
        if isinstance(one, Problem)
        else partial(
            render,
            one.answer.prediction,
            model,
            options=image.options,
            ask=one.ask,
            lowered=one.answer.lowered,
            picture=one.picture,
            warnings=one.warnings,
            cached=one.cached is True,
        )
        for image, one in zip(images, answered, strict=True)
    ]
    values = sum(_values_of(one.answer.prediction) for one in answered if not isinstance(one, Problem))
    if values <= _MOST_VALUES_AT_ONCE and all(image.options.mask == "none" for image in images):
        return [task() for task in tasks]
    caller = caller_of(scope)
    return await asyncio.gather(*(work.render(caller, task) for task in tasks))


def _values_of(prediction: Prediction) -> int:
    """The amount to write, in labels."""
    features = len(prediction.features or b"") // _FLOAT_BYTES
    return len(prediction.classes) + features // _FEATURES_OF_A_LABEL
