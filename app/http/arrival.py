"""When the head of a request arrived, from which deadlines count, when its images were answered, and with
what status its connection answered it before it was all there."""

import time

from starlette.types import Scope

_ARRIVED, _ANSWERED, _REFUSED = "arrived", "answered", "refused"


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


def images_answered(scope: Scope) -> None:
    """Note that its last image was answered now: what follows is the writing of its answer."""
    scope["state"][_ANSWERED] = time.perf_counter()


def seconds_since_answered(scope: Scope) -> float:
    """How long ago its last image was answered."""
    answered: float = scope["state"][_ANSWERED]
    return time.perf_counter() - answered


def refused_by_connection(scope: Scope, status: int) -> None:
    """Note that the connection has answered the request with this status, as its body cannot be read."""
    scope["state"][_REFUSED] = status


def status_of_connection(scope: Scope) -> int | None:
    """The status that the connection answered with; None where it did not."""
    status: int | None = scope["state"].get(_REFUSED)
    return status
