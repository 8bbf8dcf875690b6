"""How much memory may still be taken: by the limit of the container, and by what the machine has. Linux alone
says; elsewhere nothing is known."""

from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_MEMORY = Path("/proc/meminfo")


def room_bytes(
    cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP, memory: Path = _MEMORY
) -> int | None:
    """The least of what this process's control groups and the machine have left; None where neither says.

    What only keeps files in memory counts as free, for the kernel drops it first.
    """
    found = [*_left_in_groups(cgroups, membership), *_available(memory)]
    return min(found, default=None)


def _left_in_groups(cgroups: Path, membership: Path) -> Iterator[int]:
    """Of each group that has a limit, from this process's up to the root: a group's limit holds for all below
    it. Within a container its own group is the root that is seen."""
    for folder, limit, used in _groups(cgroups, membership):
        most = _number(folder / limit)
        if most is not None and (taken := _number(folder / used)) is not None:
            yield max(0, most - taken + _file_pages(folder))


def _groups(cgroups: Path, membership: Path) -> Iterator[tuple[Path, str, str]]:
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root, names = cgroups, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = root / path.lstrip("/")
        while True:
            yield folder, *names
            if folder == root:
                break
            folder = folder.parent


def _file_pages(folder: Path) -> int:
    """Bytes of files that were not used lately."""
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
    """None for "max", and for a file that is not there."""
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
