"""The number of replicas for the current work. Runs in Ray Serve's controller."""

from typing import Any, Protocol

WORK = "work"


class Context(Protocol):
    """The part of ray.serve.config.AutoscalingContext that is used."""

    aggregated_metrics: Any
    total_queued_requests: float
    config: Any


def replicas_for_work(context: Context) -> tuple[float, dict[str, Any]]:
    """The number of replicas, not rounded, and no state of ours: limits, delays and rounding are Ray's.

    Ray's own policy counts requests, in which one image at ratio 0.3 and 64 unpruned images in a form are the
    same. This one adds up the images' shares of compute, as the replicas report them
    (Replica.record_autoscaling_stats), and counts a request that waits for a replica as one image.
    """
    reported = context.aggregated_metrics.get(WORK, {})
    work = sum(reported.values()) + (context.total_queued_requests or 0.0)
    return work / context.config.target_ongoing_requests, {}
