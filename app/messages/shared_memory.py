"""Memory that processes share: a file without a name, passed on by its descriptor."""

import os
import tempfile


def make_shared_memory(name: str) -> int:
    """The descriptor of a new empty file, in memory if the system supports it; on Linux it may be sealed. It
    takes no space in /dev/shm, of which a container has 64 MB. ``name`` is shown in /proc. Raises OSError."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
