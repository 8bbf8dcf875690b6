"""Slots in use: a front end writes an image's pixels once, and a worker reads them there. See
app.messages.slot_map."""

import fcntl
import math
import mmap
import os
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from app.messages.pixels import copy_pixels
from app.messages.slot_map import SlotMap, start_of, stride

_KEPT = 64  # slots that keep their memory when all are free


class SlotWriter:
    """A front end's slots. Every method is called in one thread."""

    def __init__(self, descriptor: int, slot_map: SlotMap, front_end: int) -> None:
        self._descriptor = descriptor
        self._map = slot_map
        self._range = slot_map.range_of(front_end)
        self._parts: dict[int, mmap.mmap] = {}  # memory maps of the file, by stride
        self._free = list(reversed(self._range))
        self._taken: set[int] = set()
        self._highest = -1  # the highest slot used since all were free

    def __repr__(self) -> str:
        return f"<SlotWriter {len(self._taken)} of {len(self._range)} slots taken>"

    @property
    def taken(self) -> int:
        """The number of slots that hold an image."""
        return len(self._taken)

    def take(self) -> int | None:
        """A free slot; None if there is none."""
        if not self._free:
            return None
        slot = self._free.pop()
        self._taken.add(slot)
        self._highest = max(self._highest, slot)
        return slot

    def write(self, slot: int, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
        """Copy the pixels of an image into the slot. Raises ValueError for a slot that is not taken."""
        if stride(pixels.nbytes) not in self._parts:
            self._map_part(pixels.nbytes)
        copy_pixels(self.view(slot, pixels.shape), pixels)

    def view(self, slot: int, shape: tuple[int, ...]) -> UInt8[np.ndarray, "height width 3"]:
        """A view of the pixels of this shape in the slot. Raises ValueError for a slot that is not taken."""
        if slot not in self._taken:
            raise ValueError(f"slot {slot} is not taken")
        size = math.prod(shape)
        step = stride(size)
        start = (slot - self._range.start) * step
        return np.frombuffer(self._parts[step], np.uint8, size, start).reshape(shape)

    def free(self, slot: int) -> None:
        """Free the slot. Raises KeyError for a slot that is not taken."""
        self._taken.remove(slot)
        self._free.append(slot)
        if not self._taken:
            self._trim()

    def _map_part(self, pixel_bytes: int) -> None:
        """Map the part of the file for images of a new size, such as those of another model."""
        step, slots = stride(pixel_bytes), self._map.count
        _grow(self._descriptor, start_of(slots, slots, pixel_bytes))
        size = len(self._range) * step
        start = start_of(self._range.start, slots, pixel_bytes)
        self._parts[step] = mmap.mmap(self._descriptor, size, offset=start)
        _remove(self._parts[step], 0, size)  # left by a process that died

    def _trim(self) -> None:
        """Free the memory of all slots but a few, and use the first ones first again."""
        used = self._highest - self._range.start + 1
        if used > _KEPT:
            for step, memory in self._parts.items():
                _remove(memory, _KEPT * step, (used - _KEPT) * step)
        self._free = list(reversed(self._range))
        self._highest = -1


class SlotReader:
    """All slots of images with this many bytes, as a worker reads them."""

    def __init__(self, descriptor: int, slot_map: SlotMap, pixel_bytes: int) -> None:
        self._count, self._pixel_bytes = slot_map.count, pixel_bytes
        self._step = stride(pixel_bytes)
        _grow(descriptor, start_of(self._count, self._count, pixel_bytes))
        start = start_of(0, self._count, pixel_bytes)
        self._memory = mmap.mmap(descriptor, self._count * self._step, offset=start, access=mmap.ACCESS_READ)

    def view(self, slot: int) -> UInt8[np.ndarray, " bytes"]:
        """A view of the slot's bytes, not a copy. Raises IndexError for a slot that does not exist."""
        if not 0 <= slot < self._count:
            raise IndexError(f"slot {slot} of {self._count}")
        return np.frombuffer(self._memory, np.uint8, self._pixel_bytes, slot * self._step)


ReadSlot = Callable[[int], UInt8[np.ndarray, " bytes"]]


def _remove(memory: mmap.mmap, start: int, size: int) -> None:
    """Return the memory to the system; it reads as 0 afterwards. On Linux only."""
    if hasattr(mmap, "MADV_REMOVE"):
        memory.madvise(mmap.MADV_REMOVE, start, size)


def _grow(descriptor: int, size: int) -> None:
    """Make the file at least this large. It never becomes smaller, because other processes have it mapped."""
    fcntl.lockf(descriptor, fcntl.LOCK_EX)
    try:
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN)
