"""The slot of one image in a front end, from its decoding to its answer."""

import math

import numpy as np
from jaxtyping import UInt8

from app.errors import Overloaded
from app.messages.pixels import copy_pixels
from app.messages.slots import SlotWriter

_RETRY_AFTER_S = 1.0


class Slot:
    """Takes a slot when the pixels arrive, and frees it at the end of its `with` block, whatever the outcome
    of the image is."""

    def __init__(self, slots: SlotWriter) -> None:
        self._slots = slots
        self._number: int | None = None
        self._shape: tuple[int, ...] = ()
        self._ended = False

    def __repr__(self) -> str:
        held = "nothing" if self._number is None else f"{self.size} bytes in {self._number}"
        return f"<Slot {held}{', ended' if self._ended else ''}>"

    @property
    def number(self) -> int:
        """The number of the slot. Raises ValueError before the pixels have arrived."""
        if self._number is None:
            raise ValueError("no pixels have come")
        return self._number

    @property
    def size(self) -> int:
        """The number of bytes of the pixels."""
        return math.prod(self._shape)

    def copy(self) -> UInt8[np.ndarray, "height width 3"]:
        """A copy of the pixels, for use after the end. Raises ValueError before they have arrived."""
        pixels = self._slots.view(self.number, self._shape)
        copied = np.empty_like(pixels)
        copy_pixels(copied, pixels)
        return copied

    def write(self, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
        """Copy the pixels into the slot. After the end, nothing is copied: a decoder may finish an image
        whose request was withdrawn. Raises Overloaded if no slot is free."""
        if self._ended:
            return
        if self._number is None:
            self._number = self._slots.take()
        if self._number is None:
            raise Overloaded(
                "this process has no free slot for another image; retry later", retry_after_s=_RETRY_AFTER_S
            )
        self._slots.write(self._number, pixels)
        self._shape = pixels.shape

    def end(self) -> None:
        """Free the slot."""
        self._ended = True
        if self._number is not None:
            self._slots.free(self._number)
            self._number = None

    def __enter__(self) -> "Slot":
        """Keep the slot until the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
