"""Slots: places in shared memory for the pixels of one image each, from its decoding to its answer.

The memory is a file without a name, made by the supervisor and inherited by front ends and workers. Every
front end has a range of slots of its own, so taking one needs no lock between processes. Its pages exist once
they are written to.
"""

import mmap
from dataclasses import dataclass

_PLACES_BEYOND_THE_QUEUE = 256


@dataclass(frozen=True, slots=True)
class SlotMap:
    """Which front end has which slots."""

    front_ends: int
    per_front_end: int

    @classmethod
    def for_queue(cls, front_ends: int, queue_images: int) -> "SlotMap":
        """Slots for a queue of so many images, all of which may be one front end's, and for as many that are
        computed."""
        return cls(front_ends, 2 * queue_images + _PLACES_BEYOND_THE_QUEUE)

    @property
    def count(self) -> int:
        """All slots."""
        return self.front_ends * self.per_front_end

    def range_of(self, front_end: int) -> range:
        """The slots of that front end."""
        return range(front_end * self.per_front_end, (front_end + 1) * self.per_front_end)


def stride(pixel_bytes: int) -> int:
    """Bytes from one slot to the next: whole pages."""
    return -(-pixel_bytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
