"""Slots: places in shared memory for the pixels of one image each, from its decoding to its answer.

The memory is a file without a name, created by the supervisor and inherited by front ends and workers. Every
front end has a range of slots of its own, so taking one needs no lock between processes. The pages of the
file exist only once they are written, so its size costs nothing.
"""

import mmap
from dataclasses import dataclass
from functools import lru_cache

_PLACES_BEYOND_THE_QUEUE = 256


@dataclass(frozen=True, slots=True)
class SlotMap:
    """The slots of each front end."""

    front_ends: int
    per_front_end: int

    @classmethod
    def for_queue(cls, front_ends: int, queue_images: int) -> "SlotMap":
        """Slots for a queue of this many images, all of which may be one front end's, and for the images that
        are computed."""
        return cls(front_ends, 2 * queue_images + _PLACES_BEYOND_THE_QUEUE)

    @property
    def count(self) -> int:
        """All slots."""
        return self.front_ends * self.per_front_end

    def range_of(self, front_end: int) -> range:
        """The slots of that front end."""
        return range(front_end * self.per_front_end, (front_end + 1) * self.per_front_end)


@lru_cache(64)
def stride(pixel_bytes: int) -> int:
    """The bytes from one slot to the next: a number of pages that is a power of two."""
    pages = -(-pixel_bytes // mmap.ALLOCATIONGRANULARITY)
    return mmap.ALLOCATIONGRANULARITY << max(0, pages - 1).bit_length()


def start_of(slot: int, slots: int, pixel_bytes: int) -> int:
    """Where the slot of that number begins, for an image with this many bytes and with this number of
    ``slots``.

    Every stride has a part of the file of its own, so images of several models, whose inputs differ in size,
    do not overlap. The part begins at ``slots`` strides and ends at twice as many, where that of the next
    power of two begins.
    """
    return (slots + slot) * stride(pixel_bytes)
