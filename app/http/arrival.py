"""Times of a request: when its head arrived, from which deadlines count, and when its images were answered.
And the status with which its connection answered it before all of it had arrived."""

import time

from starlette.types import Scope

_ARRIVED, _ANSWERED, _REFUSED = "arrived", "answered", "refused"


def arrives(scope: Scope) -> None:
    """Note the time of arrival, unless it is already known."""
    scope.setdefault("state", {}).setdefault(_ARRIVED, time.perf_counter())


def seconds_since(scope: Scope) -> float:
    """The seconds since the arrival. If nobody has noted it, it is now."""
    try:
        came: float = scope["state"][_ARRIVED]
    except KeyError:
        arrives(scope)
        return 0.0
    return time.perf_counter() - came


def images_answered(scope: Scope) -> None:
    """Note that the last image was answered now. What follows is the writing of the answer."""
    scope["state"][_ANSWERED] = time.perf_counter()


def seconds_since_answered(scope: Scope) -> float:
    """The seconds since the last image was answered."""
    answered: float = scope["state"][_ANSWERED]
    return time.perf_counter() - answered


def refused_by_connection(scope: Scope, status: int) -> None:
    """Note that the connection has answered the request with this status, because its body cannot be read."""
    scope["state"][_REFUSED] = status


def status_of_connection(scope: Scope) -> int | None:
    """The status with which the connection has answered. None if it has not."""
    status: int | None = scope["state"].get(_REFUSED)
    return status
