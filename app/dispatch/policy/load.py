"""The load that the dispatcher sends to front ends, so that they can predict as it does: see
app.dispatch.policy.load_page. Pure: times are passed in."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.dispatch.policy.fair_queue import WEIGHTS
from app.dispatch.policy.predictions import Predictions
from app.dispatch.policy.scheduler import Scheduler
from app.messages.to_front_end import Load, Terms

_CALLERS_TOLD = 16


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a model: its minimum share of compute, and the tokens of an unpruned one in a batch."""

    cheapest: float
    tokens: int


def load_of(scheduler: Scheduler, predictions: Predictions, images: Mapping[str, Image], now: float) -> Load:
    """The load now, without ``seen``, the last record of each front end. ``images``: by model, the default
    one first. It counts the work before the cheapest possible image. For a more expensive one, the dispatcher
    itself decides."""
    cheap_s = min(predictions.in_batch[model].at(image.cheapest) for model, image in images.items())
    streams = scheduler.streams_at("", now)
    return Load(
        work_s={priority: scheduler.work_before(None, priority, cheap_s, now) for priority in WEIGHTS},
        callers=tuple(
            (caller, priority, scheduler.work_before(caller, priority, cheap_s, now))
            for caller, priority in scheduler.heaviest(_CALLERS_TOLD)
        ),
        free_in_s=list(streams.free_in_s),
        seen=0,
        idle=streams.idle,
        terms={model: _terms(scheduler, predictions, model, image) for model, image in images.items()},
    )


def _terms(scheduler: Scheduler, predictions: Predictions, model: str, image: Image) -> Terms:
    in_batch, alone = predictions.in_batch[model], predictions.alone[model]
    return Terms(
        overhead_s=scheduler.overhead_s(model),
        image_s=in_batch.constant_s,
        compute_s=in_batch.compute_s,
        alone_s=alone.constant_s,
        alone_compute_s=alone.compute_s,
        batch_tokens=scheduler.batch_tokens,
        image_tokens=image.tokens,
        caution=scheduler.caution,
    )
