"""The control groups (cgroups(7)) of this process. No torch."""

from collections.abc import Iterator
from pathlib import Path

MEMBERSHIP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def groups_of(controller: str, membership: Path = MEMBERSHIP, groups: Path = GROUPS) -> Iterator[Path]:
    """Yield the folders of the control groups (v1 or v2) in which ``controller`` ("cpu", "memory") limits
    this process: its own group and all groups above it, whose limits apply too. In a container, the topmost
    visible group is the container's own. Yields nothing if the kernel does not list the groups."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = groups / controller if controllers else groups  # version 1, or 2
        group = top / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))
