"""Reserves disk space for metrics files before anything is written.

They are mapped into memory. If the disk is full, a process that writes to a new page of such a file is killed
by the kernel (SIGBUS), and so is each of its successors. So the pages are allocated at the start.
"""

import os
from collections.abc import Iterable
from pathlib import Path

# The kinds of files that prometheus_client creates for our metrics, and their maximum size per process.
_KINDS = ("counter", "histogram", "summary", "gauge_mostrecent", "gauge_livesum")
_TAKEN_BYTES = 256 * 1024
_FILE_BYTES = 1024 * 1024  # the initial size of a file in prometheus_client


def reserve(folder: Path, slots: Iterable[str]) -> None:
    """Create the files of these slots (app.telemetry.metrics), empty. Raises OSError if there is not enough
    space."""
    for slot in slots:
        for kind in _KINDS:
            with (folder / f"{kind}_{slot}.db").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, _TAKEN_BYTES)
                file.truncate(_FILE_BYTES)
