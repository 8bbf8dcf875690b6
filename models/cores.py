"""The number of CPU cores that this process may use. No torch."""

import math
import os
from pathlib import Path

from models.control_groups import GROUPS, MEMBERSHIP, groups_of


def cores() -> int:
    """The number of cores this process may use: its CPU affinity, capped at the container's CPU limit
    (`docker run --cpus`, Kubernetes' `limits.cpu`), rounded up. More threads would slow each other down."""
    bound_to = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound_to, _cores_of_time())))


def _cores_of_time(membership: Path = MEMBERSHIP, groups: Path = GROUPS) -> float:
    """The CPU limit of this process's control groups, in cores; infinite without a limit."""
    return min(map(_limit_of, groups_of("cpu", membership, groups)), default=math.inf)


def _limit_of(group: Path) -> float:
    """The quota divided by the period, from the files of either cgroup version."""
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
