"""Converts refusals of the dispatcher into problems for clients. Pure."""

from app.errors import (
    DeadlinePassed,
    DeadlineUnmeetable,
    InternalFault,
    NotFound,
    OutOfMemory,
    Problem,
    QueueFull,
    WorkerLost,
)
from app.messages.to_front_end import RefusalReason

_RETRY_AFTER_S = 1.0


def problem_of(reason: RefusalReason, retry_after_s: float | None) -> Problem:
    """The problem for this reason, with the time to retry after."""
    match reason:
        case "queue-full":
            return QueueFull(
                "too many images are waiting; retry later", retry_after_s=retry_after_s or _RETRY_AFTER_S
            )
        case "deadline-unmeetable":
            return _unmeetable(retry_after_s)
        case "deadline-passed":
            return DeadlinePassed(
                "the deadline passed while the image was waiting for a batch; allow more time "
                "(deadline_ms), or "
                "retry later"
            )
        case "out-of-memory":
            return OutOfMemory(
                "the device does not have enough memory for even this one image; retry later",
                retry_after_s=retry_after_s,
            )
        case "worker-lost":
            return WorkerLost("2 workers died while computing this image; do not send it again")
        case "model-unloaded":
            return NotFound(
                "the model was unloaded before the image was computed; GET /v1/models lists the others"
            )
        case "no-number":
            return InternalFault(
                "the network's scores for this image are not finite numbers, so there is no answer; a "
                "--dtype with a wider range may help"
            )
        case _:
            return InternalFault(
                "computing this image failed, although the other images of its batch could be computed; the "
                "server log has the details"
            )


def _unmeetable(retry_after_s: float | None) -> DeadlineUnmeetable:
    """The problem of a deadline that would pass. Without a retry time, it would pass even on an idle
    server."""
    if retry_after_s is None:
        return DeadlineUnmeetable(
            "the predicted latency exceeds the deadline even on an idle server; allow more time or a "
            "lower keep ratio"
        )
    return DeadlineUnmeetable(
        "the images that are already waiting will take until after the deadline; allow more time, or retry "
        "later",
        retry_after_s=retry_after_s,
    )
