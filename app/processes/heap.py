"""Returns freed memory that malloc keeps to the system.

By itself, glibc only returns memory at the end of its heap. Here, long-lived allocations (kernels of oneDNN,
an image that still waits) lie behind and between freed ones, and a busy process would keep most of its peak
memory, and slowly more (docs/design/0023).
"""

import ctypes
import time
from collections.abc import Callable
from functools import partial

from app.processes.background import kept_thread

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MAPPED_FROM = 2**20
_USUAL_IMAGE, _KEPT = 4 * 2**20, 16 * 2**20
_EVERY_S = 10.0
_SOMETHING_S = 0.1  # of CPU time: a process that used less has freed little


def give_back_freed_memory(every_s: float = _EVERY_S) -> None:
    """Start a thread that does so at intervals in which this process did something. Does nothing with another
    libc than glibc.

    Measured with a heap of 600 MiB: 4 to 9 ms, in which other threads wait when they allocate, and 5 to 36 ms
    more for the next batch of 1 to 16 images, whose pages must be mapped again.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim.argtypes = [ctypes.c_size_t]
        kept_thread(partial(_keep_giving, trim, every_s), "heap")


def map_large_memory() -> None:
    """Map allocations from one mebibyte on separately, so that a body grows without a copy and its memory is
    returned when it is freed. glibc would raise this threshold with every large allocation that is freed, to
    32 MiB."""
    _mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)


def keep_memory_of_usual_images() -> None:
    """Keep up to 16 MiB of freed memory for the next image, and map allocations separately that are larger
    than any part of most images. By default, glibc returns the memory after every image, and the system
    clears each page again."""
    _mallopt(_M_MMAP_THRESHOLD, _USUAL_IMAGE)
    _mallopt(_M_TRIM_THRESHOLD, _KEPT)


def _mallopt(parameter: int, value: int) -> None:
    """Set an option of malloc. Does nothing with another libc than glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)


def _keep_giving(trim: Callable[[int], int], every_s: float) -> None:
    worked_s = time.process_time()
    while True:
        time.sleep(every_s)
        if time.process_time() - worked_s >= _SOMETHING_S:
            trim(0)
            worked_s = time.process_time()
