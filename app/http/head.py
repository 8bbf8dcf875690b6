"""Looks into a request's head by as little work as possible: middleware does so several times for each."""

from starlette.types import Scope


def header_of(scope: Scope, name: bytes) -> str | None:
    """The first value of the header with this name, in small letters; None where there is none."""
    for given, value in scope["headers"]:
        if given == name:
            text: str = value.decode("latin-1")
            return text
    return None
