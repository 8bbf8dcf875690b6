"""A folder of a server's own for its sockets and metrics, which does not outlive it.

Whoever is killed cannot clear up. So the folder's owner holds a lock on a file in it, which the system lets
go when the owner ends, and who starts next removes the folders whose lock nobody holds.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

_PREFIX = "trimvit-"
_LOCK = "lock"


class PrivateFolder:
    """A new one at ``path``, which only this user can read, until `remove` or this process's end."""

    def __init__(self) -> None:
        _remove_abandoned(Path(tempfile.gettempdir()))
        # Under this name nobody looks at it before its lock is held.
        made = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))  # with mode 0700
        self._lock = (made / _LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = made.rename(made.with_name(made.name[1:]))

    def remove(self) -> None:
        """With all that is in it. Does nothing the second time."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # held, without a lock (not ours), or somebody has just removed it
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                with (folder / _LOCK).open("r+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
