"""The duty of the first process of a container: to wait for processes whose parent has died.

Such a process becomes a child of process 1 and, when it ends, a zombie until process 1 waits for it. An
example is a decoder of an HTTP process that was killed.
"""

import asyncio
import contextlib
import os
from pathlib import Path

_EVERY_S = 5.0


async def reap_orphans(every_s: float = _EVERY_S) -> None:
    """If this is process 1, wait for ended children, for ever. Whoever started a child waits for it at once,
    so a child that is a zombie at two checks in a row is an orphan."""
    if os.getpid() != 1:
        return
    before: set[int] = set()
    while True:
        now = set(_ended_children())
        _wait_for(before & now)
        before = now
        await asyncio.sleep(every_s)


def _wait_for(ended: set[int]) -> None:
    for pid in ended:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _ended_children() -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # the process has just ended
            # State and parent follow the name, which is in parentheses and may contain any characters.
            state, parent, *_ = status.read_bytes().rpartition(b") ")[2].split()
            if state == b"Z" and int(parent) == 1:
                found.append(int(status.parent.name))
    return found
