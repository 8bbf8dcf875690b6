"""The caller of a request, and what it is allowed to do."""

from starlette.types import Scope

from app.http.clients import client_of
from app.priority import Priority
from app.settings.security import SecuritySettings


def caller_of(scope: Scope) -> str:
    """The caller whose share of the workers a request uses: the name of its API key, if it has one, or the
    client's address (for IPv6, its network)."""
    named = named_caller_of(scope)
    if named is not None:
        return named
    client: tuple[str, int] | None = scope.get("client")
    return "" if client is None else client_of(client[0])


def named_caller_of(scope: Scope) -> str | None:
    """The name of the request's API key. None if no keys are required."""
    named: str | None = scope.get("state", {}).get("caller")
    return named


def key_name_of(scope: Scope) -> str:
    """The name of the request's API key. Empty if no keys are required."""
    return named_caller_of(scope) or ""


def max_priority_of(scope: Scope, settings: SecuritySettings) -> Priority:
    """The highest priority that the caller may use: that of its API key, or that of the setting."""
    of_the_key: Priority | None = scope.get("state", {}).get("max_priority")
    return of_the_key or settings.max_priority


def is_admin(scope: Scope) -> bool:
    """Whether the caller may load and unload models: if API keys are required, keys that are marked admin,
    and otherwise everybody."""
    of_the_key: bool = scope.get("state", {}).get("is_admin", True)
    return of_the_key
