"""What the dispatcher tells front ends of its load, so that they can reckon as it does: see
app.dispatch.policy.load_page. Pure: times are passed in."""

from app.dispatch.policy.fair_queue import WEIGHTS
from app.dispatch.policy.predictions import Predictions
from app.dispatch.policy.scheduler import Scheduler
from app.messages.to_front_end import Load, Terms

_CALLERS_TOLD = 16


def load_of(
    scheduler: Scheduler, predictions: Predictions, cheapest: float, image_tokens: int, now: float
) -> Load:
    """The load now, but for what each front end has been ``seen`` to send. ``cheapest`` is the share of
    compute of the image before which so much is served: of one that costs more the dispatcher itself will
    tell. ``image_tokens`` is what an unpruned image counts in a batch."""
    in_batch, alone = predictions.in_batch, predictions.alone
    cheap_s, streams = in_batch.at(cheapest), scheduler.streams_at(now)
    return Load(
        work_s={priority: scheduler.work_before(None, priority, cheap_s, now) for priority in WEIGHTS},
        callers=tuple(
            (caller, priority, scheduler.work_before(caller, priority, cheap_s, now))
            for caller, priority in scheduler.heaviest(_CALLERS_TOLD)
        ),
        free_in_s=list(streams.free_in_s),
        seen=0,
        idle=streams.idle,
        terms=Terms(
            overhead_s=streams.overhead_s,
            image_s=in_batch.constant_s,
            compute_s=in_batch.compute_s,
            alone_s=alone.constant_s,
            alone_compute_s=alone.compute_s,
            batch_tokens=scheduler.batch_tokens,
            image_tokens=image_tokens,
            caution=streams.caution,
        ),
    )
