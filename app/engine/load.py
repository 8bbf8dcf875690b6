"""What an engine tells front ends of its load, so that they can reckon as it does: see app.engine.outlook.
Pure: times are passed in."""

from app.engine.cost import CostModel, Work
from app.engine.fair_queue import WEIGHTS
from app.engine.messages import Load, Terms
from app.engine.scheduler import Scheduler

_CALLERS_TOLD = 16


def load_of(scheduler: Scheduler, costs: CostModel, cheapest: float, image_tokens: int, now: float) -> Load:
    """The load now, but for what each front end has been ``seen`` to send. ``cheapest`` is the share of
    compute of the image whose wait is told: of one that costs more the engine itself will tell.
    ``image_tokens`` is what an unpruned image counts in a batch."""
    limits = scheduler.limits
    image_s = costs.image_s(1.0, limits.stream_threads)
    rest_s = costs.image_s(0.0, limits.stream_threads)
    alone_s = costs.predict(Work(1, 0.0), limits.threads)
    cheap_s = costs.image_s(cheapest, limits.stream_threads)
    return Load(
        wait_s={priority: scheduler.wait_s(None, priority, cheap_s, now) for priority in WEIGHTS},
        callers=tuple(
            (caller, priority, scheduler.wait_s(caller, priority, cheap_s, now))
            for caller, priority in scheduler.heaviest(_CALLERS_TOLD)
        ),
        image_s=image_s / limits.streams,
        seen=0,
        idle=scheduler.idle,
        running_s=scheduler.running_s(now),
        terms=Terms(
            overhead_s=scheduler.overhead_s,
            image_s=rest_s,
            compute_s=image_s - rest_s,
            alone_s=alone_s,
            alone_compute_s=costs.predict(Work(1, 1.0), limits.threads) - alone_s,
            batch_compute=limits.batch_tokens / image_tokens,
            caution=scheduler.caution,
        ),
    )
