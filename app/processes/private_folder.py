"""A private folder of a server for its sockets and metrics, which is removed when the server ends.

A killed process cannot clean up. So the owner of the folder holds a lock on a file in it, which the system
releases when the owner ends, and the next server removes folders that nobody has locked.

Old files in temporary folders are removed by cleaners. systemd-tmpfiles skips a folder on which somebody
holds a lock, so there is one on the folder itself, too. Others look at times, which `refresh` updates.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

_PREFIX = "trimvit-"
_LOCK = "lock"
_LONGEST_SOCKET = "dispatcher"  # the longest name of a socket in the folder
_SOCKET_BYTES = 107  # maximum length of a socket's path: sun_path in unix(7)
# Metrics files are memory-mapped, so writing to them without free space kills the process.
_ROOM_BYTES = 2**20


class NoFolder(OSError):
    """No folder can be used for the server's sockets. The text lists those that were tried."""


class PrivateFolder:
    """A new folder at ``path``, which only this user can read, until `remove` or the end of this process.

    It is created in the first of ``parents`` that can be used. Raises NoFolder.
    """

    def __init__(self, parents: Sequence[Path] | None = None) -> None:
        tried = []
        for parent in parents or folders_for_temporary_files():
            _remove_abandoned(parent)
            try:
                self.path = self._made_in(parent)
            except OSError as error:
                tried.append(f"{parent}: {error.strerror or error}")
                continue
            if tried:
                log.warning(
                    "using %s for sockets and metrics files, because other folders cannot be used (%s)",
                    parent,
                    "; ".join(tried),
                )
            return
        raise NoFolder(
            f"no usable folder for sockets and metrics files; set TMPDIR to one ({'; '.join(tried)})"
        )

    def _made_in(self, parent: Path) -> Path:
        # Other processes ignore this name until its lock is held.
        made = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=parent))  # with mode 0700
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(shutil.rmtree, made, ignore_errors=True)
            _check_paths(made)
            lock = on_failure.enter_context((made / _LOCK).open("wb"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.posix_fallocate(lock.fileno(), 0, _ROOM_BYTES)
            lock.truncate(0)
            _check_sockets(made)
            folder = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
            on_failure.callback(os.close, folder)
            fcntl.flock(folder, fcntl.LOCK_EX)
            path = made.rename(made.with_name(made.name[1:]))
            on_failure.pop_all()
        self._lock, self._folder = lock, folder
        return path

    def refresh(self) -> bool:
        """Update the times of everything in it. Returns False if the folder or a part of it no longer
        exists."""
        if not (self.path / _LOCK).exists():
            return False
        with contextlib.suppress(OSError):  # if it fails, it is tried again next time
            for path in (self.path, *self.path.rglob("*")):
                with contextlib.suppress(FileNotFoundError):  # the file is being replaced
                    os.utime(path)
        return True

    def remove(self) -> None:
        """Remove it with its content. Does nothing the second time."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1


def folders_for_temporary_files() -> list[Path]:
    """TMPDIR and similar variables, then the folders that most systems have."""
    named = (os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP", "XDG_RUNTIME_DIR"))
    found = [*filter(None, named), "/tmp", "/var/tmp", "/dev/shm"]  # noqa: S108
    return list(dict.fromkeys(Path(name).absolute() for name in found))


def _check_paths(folder: Path) -> None:
    """Raises OSError if the path of a socket in the folder, without the dot before its name, is too long."""
    spare = _SOCKET_BYTES - len(os.fsencode(folder)) + 1 - len(f"/{_LONGEST_SOCKET}")
    if spare < 0:
        most = len(os.fsencode(folder.parent)) + spare
        raise OSError(f"its path is too long for a Unix socket: at most {most} bytes")


def _check_sockets(folder: Path) -> None:
    """Raises OSError if the folder does not support sockets, like some network and container file systems."""
    place = folder / "socket"
    with socket.socket(socket.AF_UNIX) as trial:
        trial.bind(str(place))
    place.unlink()


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            # This fails if the folder is in use, has no lock file (not ours), or was just removed.
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                with (folder / _LOCK).open("r+b") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
