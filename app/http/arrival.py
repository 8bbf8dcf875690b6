"""When a request came: deadlines count from when its head was there."""

import time

from starlette.types import Scope

_ARRIVED = "arrived"


def arrives(scope: Scope) -> None:
    """Note that the request came now, unless that is known already."""
    scope.setdefault("state", {}).setdefault(_ARRIVED, time.perf_counter())


def seconds_since(scope: Scope) -> float:
    """How long ago it came; it comes now, where nobody noted it."""
    try:
        came: float = scope["state"][_ARRIVED]
    except KeyError:
        arrives(scope)
        return 0.0
    return time.perf_counter() - came
