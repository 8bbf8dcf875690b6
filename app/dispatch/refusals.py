"""A dispatcher's refusals as the problems that clients are told. Pure."""

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
            return QueueFull("too much work is waiting", retry_after_s=retry_after_s or _RETRY_AFTER_S)
        case "deadline-unmeetable":
            return _unmeetable(retry_after_s)
        case "deadline-passed":
            return DeadlinePassed("the deadline passed while the image was waiting")
        case "out-of-memory":
            return OutOfMemory(
                "a worker has not enough memory for this image, even alone",
                retry_after_s=retry_after_s,
            )
        case "worker-lost":
            return WorkerLost("2 workers died while they computed this image")
        case "model-unloaded":
            return NotFound(
                "the model was unloaded while the image was on its way; /v1/models lists the others"
            )
        case "no-number":
            return InternalFault(
                "the network's scores for this image are not finite numbers, so there is no answer; a wider "
                "--dtype may help"
            )
        case _:
            return InternalFault("a worker failed on this image, and on no other of its batch; see its log")


def _unmeetable(retry_after_s: float | None) -> DeadlineUnmeetable:
    """The deadline would pass; without a time to come back, whatever is waiting."""
    if retry_after_s is None:
        return DeadlineUnmeetable("even idle workers are predicted to take longer than the deadline")
    return DeadlineUnmeetable(
        "the images that wait are predicted to take until after the deadline", retry_after_s=retry_after_s
    )
