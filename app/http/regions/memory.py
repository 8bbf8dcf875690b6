"""A client's shared memory: a file in /dev/shm that is opened by its name at each use.

It is read and written by copies (pread, pwrite), and never mapped: a client can shrink its file at any time,
and a process that then reads a mapping of it is killed (SIGBUS).
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import InvalidValue
from app.wrong_values import short

FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open has its files
_LONGEST_KEY = 255  # bytes of a file name
_SEMAPHORE = "sem."  # prefix of files of sem_open

# System errors, with advice for the client that sent the key.
_REASONS = {
    errno.ENOENT: "it does not exist; create it before you register it",
    errno.ELOOP: "it is a symbolic link; create the region with shm_open",
    errno.EACCES: "the server has no permission to open it; allow the server's user to read and write it",
}


def file_name(key: str) -> str:
    """The name of the file in /dev/shm. Raises InvalidValue for a key that is not a valid name."""
    name = key.removeprefix("/")
    if (
        not name
        or "/" in name
        or name in (".", "..")
        or not name.isprintable()
        or name.startswith(_SEMAPHORE)
        or len(name.encode(errors="replace")) > _LONGEST_KEY
    ):
        raise InvalidValue(
            f"the key {short.repr(key)} is not a valid name of POSIX shared memory: at most "
            f"{_LONGEST_KEY} bytes, "
            "with no slash but the first and nothing unprintable, such as /images; names of semaphores "
            "(sem.*) are not allowed"
        )
    return name


def check(key: str, end: int) -> None:
    """Raises InvalidValue unless there is shared memory of that name with at least ``end`` bytes."""
    with _opened(key, os.O_RDONLY) as descriptor:
        _check_size(key, descriptor, end)


def read(key: str, start: int, size: int) -> bytearray:
    """The bytes there. Raises InvalidValue if the memory is too small (now)."""
    data = bytearray(size)
    view = memoryview(data)
    with _opened(key, os.O_RDONLY) as descriptor:
        _check_size(key, descriptor, start + size)
        done = 0
        while done < size:
            if (count := os.preadv(descriptor, [view[done:]], start + done)) == 0:
                raise _too_short(key, start + done, start + size)
            done += count
    return data


def write(key: str, start: int, data: bytes) -> None:
    """Write the bytes there. Raises InvalidValue if the memory is too small (now)."""
    view = memoryview(data)
    with _opened(key, os.O_RDWR) as descriptor:
        _check_size(key, descriptor, start + len(data))
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(descriptor, view[done:], start + done)
            except OSError as error:
                raise _unusable(key, error) from error


@contextmanager
def _opened(key: str, mode: int) -> Iterator[int]:
    path = FOLDER / file_name(key)
    try:
        # O_NONBLOCK, because opening a FIFO or a device could block.
        descriptor = os.open(path, mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(key, error) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidValue(
                f"the shared memory {short.repr(key)} cannot be used: it is not a regular file"
            )
        yield descriptor
    finally:
        os.close(descriptor)


def _check_size(key: str, descriptor: int, end: int) -> None:
    there = os.fstat(descriptor).st_size
    if end > there:
        raise _too_short(key, there, end)


def _too_short(key: str, there: int, end: int) -> InvalidValue:
    return InvalidValue(
        f"the shared memory {short.repr(key)} has {there} bytes; {short.repr(end)} are needed (offset and "
        "size together)"
    )


def _unusable(key: str, error: OSError) -> InvalidValue:
    reason = _REASONS.get(error.errno or 0) or error.strerror
    return InvalidValue(f"the shared memory {short.repr(key)} cannot be used: {reason}")
