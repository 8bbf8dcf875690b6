"""When a request came: deadlines count from when its head was there."""

import time

from starlette.types import Scope

_ARRIVED = "arrived"


def arrives(scope: Scope) -> None:
    """Note that the request came now, unless that is known already."""
    scope.setdefault("state", {}).setdefault(_ARRIVED, time.perf_counter())


def arrived(scope: Scope) -> float:
    """When it came, by time.perf_counter; now, where nobody noted it."""
    arrives(scope)
    when: float = scope["state"][_ARRIVED]
    return when


def seconds_since(scope: Scope) -> float:
    """How long ago it came."""
    return time.perf_counter() - arrived(scope)
