"""When the head of a request arrived, from which deadlines count, and when its images were answered."""

import time

from starlette.types import Scope

_ARRIVED, _ANSWERED = "arrived", "answered"


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
