"""How many cores this process may use. It imports no torch."""

import math
import os
from pathlib import Path


def cores() -> int:
    """Cores this process may use: those it is bound to, but no more than a container's limit (`docker run
    --cpus`, Kubernetes' `limits.cpu`) gives it time for, rounded up. More threads would stop each other."""
    bound_to = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound_to, _cores_of_time())))


def _cores_of_time(
    membership: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")
) -> float:
    """How many cores' time the control groups of this process may take (cgroups(7)); infinite without a
    limit. A group's is that of every group above it as well; in a container, the topmost that is seen is its
    own."""
    if not membership.exists():
        return math.inf
    least = math.inf
    for line in membership.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = groups / "cpu" if controllers else groups  # version 1, or 2
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                least = min(least, _limit_of(folder))
    return least


def _limit_of(group: Path) -> float:
    """Quota over period, in whatever version's files."""
    if (both := group / "cpu.max").exists():
        quota, period = both.read_text(encoding="utf-8").split()
    elif (one := group / "cpu.cfs_quota_us").exists():
        quota, period = (
            one.read_text(encoding="utf-8").strip(),
            (group / "cpu.cfs_period_us").read_text(encoding="utf-8"),
        )
    else:
        return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)
