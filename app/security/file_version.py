"""Whether a file has changed since it was read."""

from pathlib import Path


def version_of(path: Path) -> tuple[int, ...] | None:
    """Differs after any change of the file, its owner or its mode, also after it was replaced by another;
    None without one."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
