"""Shared memory through which a decoding process passes pixels to the front end: both sides of it.

Pixels do not go through a socket, because writing and reading 150 KB there takes longer than the rest of the
exchange.
"""

import fcntl
import mmap
import os
import sys

import numpy as np
from jaxtyping import UInt8

from app.messages.shared_memory import make_shared_memory

Pixels = UInt8[np.ndarray, "height width 3"]


class SharedPixels:
    """The front end's side. It alone sets the size of the memory: a compromised decoder must not be able to
    shrink it, which would kill the front end when it reads."""

    def __init__(self) -> None:
        """Raises OSError."""
        self.number = make_shared_memory("trimvit-pixels")
        if sys.platform.startswith("linux"):  # other systems do not support seals
            fcntl.fcntl(self.number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        self._mapped = np.empty(0, np.uint8)

    def reserve(self, size: int) -> None:
        """Make room for this number of bytes. Raises OSError."""
        if size > self._mapped.size:
            os.ftruncate(self.number, size)
            self._mapped = np.frombuffer(mmap.mmap(self.number, size, prot=mmap.PROT_READ), np.uint8)

    def view(self, height: int, width: int) -> Pixels:
        """A view of the pixels in the shared memory. The decoder can change them at any time, and the next
        image does."""
        return self._mapped[: height * width * 3].reshape(height, width, 3)

    def close(self) -> None:
        """Close the file. Mapped memory stays until nothing refers to it."""
        os.close(self.number)


class PixelsWriter:
    """The decoder's side, by file descriptor. The front end makes room before it sends an image."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._mapped = np.empty(0, np.uint8)

    def write(self, pixels: Pixels) -> None:
        """Replace the pixels."""
        if pixels.size > self._mapped.size:
            self._mapped = np.frombuffer(mmap.mmap(self._number, pixels.size), np.uint8)
        self._mapped[: pixels.size] = pixels.reshape(-1)
