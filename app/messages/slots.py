"""Slots in use: a front end writes an image's pixels once, and a worker reads them from where they are. See
app.messages.slot_map."""

import fcntl
import mmap
import os
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from app.messages.pixels import copy_pixels
from app.messages.slot_map import SlotMap, stride

_KEPT = 64  # slots whose memory is kept when all are free


class SlotWriter:
    """A front end's slots. Every method is called in one thread."""

    def __init__(self, descriptor: int, slot_map: SlotMap, front_end: int) -> None:
        self._descriptor = descriptor
        self._map = slot_map
        self._range = slot_map.range_of(front_end)
        self._memory: mmap.mmap | None = None
        self._pixel_bytes = 0
        self._free = list(reversed(self._range))
        self._taken: set[int] = set()
        self._highest = -1  # of all slots that were taken since all were free

    def __repr__(self) -> str:
        return f"<SlotWriter {len(self._taken)} of {len(self._range)} slots taken>"

    @property
    def taken(self) -> int:
        """Slots that hold an image."""
        return len(self._taken)

    def take(self) -> int | None:
        """A free slot; None where there is none."""
        if not self._free:
            return None
        slot = self._free.pop()
        self._taken.add(slot)
        self._highest = max(self._highest, slot)
        return slot

    def write(self, slot: int, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
        """Copy the pixels of an image into the slot. Raises ValueError for a slot that is not taken."""
        if pixels.nbytes != self._pixel_bytes:
            self._resize(pixels.nbytes)
        copy_pixels(self.view(slot, pixels.shape), pixels)

    def view(self, slot: int, shape: tuple[int, ...]) -> UInt8[np.ndarray, "height width 3"]:
        """The pixels of this shape that are in the slot, where they are. Raises ValueError for a slot that is
        not taken."""
        if slot not in self._taken:
            raise ValueError(f"slot {slot} is not taken")
        assert self._memory is not None
        start = (slot - self._range.start) * stride(self._pixel_bytes)
        return np.frombuffer(self._memory, np.uint8, self._pixel_bytes, start).reshape(shape)

    def free(self, slot: int) -> None:
        """The image in it needs it no more. Raises KeyError for a slot that is not taken."""
        self._taken.remove(slot)
        self._free.append(slot)
        if not self._taken:
            self._trim()

    def _resize(self, pixel_bytes: int) -> None:
        """For images of another size, as of another model. Slots of the old size are not read any more."""
        step = stride(pixel_bytes)
        _grow(self._descriptor, self._map.count * step)
        size = len(self._range) * step
        self._memory = mmap.mmap(self._descriptor, size, offset=self._range.start * step)
        self._pixel_bytes = pixel_bytes
        self._remove(0, size)  # what a predecessor that died left behind

    def _trim(self) -> None:
        """Give back the memory of all slots but a few, and take the first ones first again."""
        used = self._highest - self._range.start + 1
        if used > _KEPT:
            step = stride(self._pixel_bytes)
            self._remove(_KEPT * step, (used - _KEPT) * step)
        self._free = list(reversed(self._range))
        self._highest = -1

    def _remove(self, start: int, size: int) -> None:
        """Give the memory back to the system; what is read there is 0 then. On Linux only."""
        if self._memory is not None and hasattr(mmap, "MADV_REMOVE"):
            self._memory.madvise(mmap.MADV_REMOVE, start, size)


class SlotReader:
    """All slots, as a worker reads them, of images with so many bytes."""

    def __init__(self, descriptor: int, slot_map: SlotMap, pixel_bytes: int) -> None:
        self._count, self._pixel_bytes = slot_map.count, pixel_bytes
        self._step = stride(pixel_bytes)
        size = self._count * self._step
        _grow(descriptor, size)
        self._memory = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)

    def view(self, slot: int) -> UInt8[np.ndarray, " bytes"]:
        """The slot's bytes where they are, not a copy. Raises IndexError for a slot that there is not."""
        if not 0 <= slot < self._count:
            raise IndexError(f"slot {slot} of {self._count}")
        return np.frombuffer(self._memory, np.uint8, self._pixel_bytes, slot * self._step)


ReadSlot = Callable[[int], UInt8[np.ndarray, " bytes"]]


def _grow(descriptor: int, size: int) -> None:
    """Make the file at least so large: it never becomes smaller, for others have it mapped."""
    fcntl.lockf(descriptor, fcntl.LOCK_EX)
    try:
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN)
