"""How much more memory may be taken, by the limit of the container and by that of the machine. On Linux only;
elsewhere it is not known."""

from collections.abc import Iterator
from pathlib import Path

from models.control_groups import GROUPS, MEMBERSHIP, groups_of

_MEMORY = Path("/proc/meminfo")
# Files of both versions of control groups.
_LIMIT_AND_USED = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def room_bytes(groups: Path = GROUPS, membership: Path = MEMBERSHIP, memory: Path = _MEMORY) -> int | None:
    """The least that this process's control groups and the machine have left. None if neither is known.

    Memory that only caches files counts as free, because the kernel drops it first.
    """
    found = [*_left_in_groups(groups, membership), *_available(memory)]
    return min(found, default=None)


def _left_in_groups(groups: Path, membership: Path) -> Iterator[int]:
    """The memory left in each group that has a limit."""
    for folder in groups_of("memory", membership, groups):
        for limit, used in _LIMIT_AND_USED:
            most, taken = _number(folder / limit), _number(folder / used)
            if most is not None and taken is not None:
                yield max(0, most - taken + _file_pages(folder))


def _file_pages(folder: Path) -> int:
    """The bytes of cached files that were not used recently."""
    try:
        text = (folder / "memory.stat").read_text(encoding="utf-8")
    except OSError:
        return 0
    values = dict(line.split() for line in text.splitlines() if len(line.split()) == 2)
    return int(values.get("total_inactive_file", values.get("inactive_file", "0")))


def _available(memory: Path) -> Iterator[int]:
    try:
        lines = memory.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            yield 1024 * int(value.split()[0])


def _number(file: Path) -> int | None:
    """The number in the file. None for "max", and if there is no such file."""
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
