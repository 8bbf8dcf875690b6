"""Reads a request's headers with as little work as possible: middleware does so a dozen times for each
request."""

from starlette.types import Scope

_FIRST_VALUES = "trimvit.first_values"


def header_of(scope: Scope, name: bytes) -> str | None:
    """The first value of the header with this name, in lower case. None if there is none."""
    headers = scope["headers"]
    known: tuple[object, dict[bytes, bytes]] | None = scope.get(_FIRST_VALUES)
    if known is None or known[0] is not headers:  # the headers in the scope were replaced
        known = scope[_FIRST_VALUES] = headers, dict(reversed(headers))
    value = known[1].get(name)
    return None if value is None else value.decode("latin-1")
