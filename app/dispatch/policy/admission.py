"""Whether an image is admitted. Pure: no clock, no queue.

The dispatcher decides with `refusal`. Front ends use it on the load that the dispatcher has sent them, so
that no image is received and decoded that the dispatcher would refuse. Times are seconds from now.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

Reason = Literal["queue-full", "deadline-unmeetable"]

# Maximum share of the time until its deadline that an image may give to later images in its batch.
_BATCH_SHARE = 0.25


class Refusal(msgspec.Struct, frozen=True):
    """An image that is not accepted. ``retry_after_s``: when it is predicted to be accepted; None if even an
    idle worker could not meet its deadline."""

    reason: Reason
    retry_after_s: float | None


class Streams(msgspec.Struct, frozen=True):
    """The streams of all workers: when each is free, ascending, and whether nothing waits and nothing runs.
    ``overhead_s``: the time of a batch without its images. ``caution``: the factor with which predictions
    hold."""

    free_in_s: Sequence[float]
    idle: bool
    overhead_s: float
    caution: float


class Wanted(msgspec.Struct, frozen=True):
    """What an image needs: ``seconds`` in a batch, of which ``in_batch`` similar images fill one, or
    ``alone_s`` by itself on idle streams. It has ``deadline_s`` left, and its predicted wait may be up to
    ``wait_limit_s``."""

    seconds: float
    alone_s: float
    in_batch: int
    deadline_s: float
    wait_limit_s: float

    @property
    def batch_s(self) -> float:
        """The time of a batch of similar images without the overhead: a full one, or as many as its deadline
        allows."""
        return max(self.seconds, min(self.in_batch * self.seconds, _BATCH_SHARE * self.deadline_s))


class Ahead(msgspec.Struct, frozen=True):
    """What is served before an image: seconds of work, including the overheads of its batches. The image
    waits for ``wait_s`` until all of it has been started."""

    work_s: float
    wait_s: float


class Place(msgspec.Struct, frozen=True):
    """An image's place in the queue: how long it would wait there, how long it may wait, and the slack that
    it leaves to the images behind it in its batch."""

    wait_s: float
    spare_s: float
    batch_slack_s: float

    @property
    def is_in_time(self) -> bool:
        """Whether the image would be in time."""
        return self.wait_s <= self.spare_s


def ahead_of(wanted: Wanted, work_s: float, streams: Streams) -> Ahead:
    """What is ahead if this many seconds of work are served first, in batches at least as large as a batch of
    similar images."""
    if work_s > 0 and (batch_s := wanted.batch_s) > 0:
        work_s *= 1 + streams.overhead_s / batch_s
    return Ahead(work_s, starts_in(work_s, streams.free_in_s))


def place_of(wanted: Wanted, ahead: Ahead, streams: Streams) -> Place:
    """The image's place behind the work ahead of it.

    It may wait for what is left until its deadline after its own batch, with caution. If there is a queue,
    its batch has other images behind it and is not made smaller for this one: a device may do ten times the
    work in full batches.
    """
    slack_s = min(wanted.batch_s - wanted.seconds, ahead.work_s / len(streams.free_in_s))
    own_s = wanted.alone_s if streams.idle else streams.overhead_s + wanted.seconds
    spare_s = min(wanted.deadline_s / streams.caution - slack_s - own_s, wanted.wait_limit_s)
    return Place(ahead.wait_s, spare_s, slack_s)


def refusal(wanted: Wanted, ahead: Ahead, streams: Streams) -> Refusal | None:
    """Why the image is not admitted, and when it could be. None if it is admitted."""
    if streams.caution * min(wanted.alone_s, streams.overhead_s + wanted.seconds) > wanted.deadline_s:
        return Refusal("deadline-unmeetable", None)
    place = place_of(wanted, ahead, streams)
    if place.is_in_time:
        return None
    reason: Reason = "deadline-unmeetable" if place.spare_s < wanted.wait_limit_s else "queue-full"
    return Refusal(reason, max(0.0, place.wait_s - max(0.0, place.spare_s)))


def starts_in(work_s: float, free_in_s: Sequence[float]) -> float:
    """The seconds until this much work has been started on streams that become free at these times."""
    start_s, used = free_in_s[0], 1
    for free_s in free_in_s[1:]:
        if (free_s - start_s) * used >= work_s:
            break
        work_s -= (free_s - start_s) * used
        start_s, used = free_s, used + 1
    return start_s + work_s / used
