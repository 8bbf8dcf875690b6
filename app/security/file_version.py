"""Whether a file has changed since it was read."""

from pathlib import Path


def version_of(path: Path) -> tuple[int, ...] | None:
    """A value that differs after any change of the file, its owner or its mode, and after it was replaced by
    another file. None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
