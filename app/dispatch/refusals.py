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
    """The problem that says why, and when to come back."""
    match reason:
        case "queue-full":
            return QueueFull("too many images are waiting", retry_after_s=retry_after_s or _RETRY_AFTER_S)
        case "deadline-unmeetable":
            return _unmeetable(retry_after_s)
        case "deadline-passed":
            return DeadlinePassed("the deadline passed while the image was waiting")
        case "out-of-memory":
            return OutOfMemory(
                "the device does not have enough memory for this image, even by itself",
                retry_after_s=retry_after_s,
            )
        case "worker-lost":
            return WorkerLost("2 workers died while computing this image")
        case "model-unloaded":
            return NotFound(
                "the model was unloaded before the image was computed; /v1/models lists the others"
            )
        case "no-number":
            return InternalFault(
                "the network's scores for this image are not finite numbers, so there is no answer; a "
                "--dtype with a wider range may help"
            )
        case _:
            return InternalFault(
                "computing this image failed, though not the other images of its batch; see the log of "
                "the worker"
            )


def _unmeetable(retry_after_s: float | None) -> DeadlineUnmeetable:
    """The deadline would pass; without a time to come back, whatever is waiting."""
    if retry_after_s is None:
        return DeadlineUnmeetable(
            "the predicted latency exceeds the deadline even on an idle server; allow more time or a "
            "lower keep ratio"
        )
    return DeadlineUnmeetable(
        "the images already waiting are predicted to take until after the deadline",
        retry_after_s=retry_after_s,
    )
