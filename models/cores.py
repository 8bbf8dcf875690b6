"""The number of cores that this process may use. It does not import torch."""

import math
import os
from pathlib import Path

from models.control_groups import GROUPS, MEMBERSHIP, groups_of


def cores() -> int:
    """Cores this process may use: those it is bound to, but no more than a container's limit (`docker run
    --cpus`, Kubernetes' `limits.cpu`) gives it time for, rounded up. More threads would stop each other."""
    bound_to = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound_to, _cores_of_time())))


def _cores_of_time(membership: Path = MEMBERSHIP, groups: Path = GROUPS) -> float:
    """How many cores' time the control groups of this process may take; infinite without a limit."""
    return min(map(_limit_of, groups_of("cpu", membership, groups)), default=math.inf)


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
