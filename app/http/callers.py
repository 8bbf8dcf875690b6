"""What the scheduling of the engines must know of a request beside its images."""

import math

from starlette.types import Scope

from app.engine.client import Expected
from app.engine.messages import ModelInfo
from app.engine.shares import shares
from app.errors import PriorityNotAllowed
from app.http.clients import client_of
from app.http.schemas import ImageOptions
from app.inference.resolved_options import ResolvedOptions
from app.priority import Priority, up_to
from app.settings.settings import Settings


def caller_of(scope: Scope) -> str:
    """Whose share of the engines a request takes: the name that its API key stands for, where it has one, or
    the client's address (of IPv6, its network)."""
    named: str | None = scope.get("state", {}).get("caller")
    if named is not None:
        return named
    client: tuple[str, int] | None = scope.get("client")
    return "" if client is None else client_of(client[0])


def max_priority_of(scope: Scope, settings: Settings) -> Priority:
    """The highest priority that the caller may ask for: what the line of its API key says, else the
    setting."""
    of_the_key: Priority | None = scope.get("state", {}).get("max_priority")
    return of_the_key or settings.max_priority


def priority_of(options: ImageOptions, highest: Priority) -> Priority:
    """The priority of an image whose caller may ask for no more than ``highest``. Raises PriorityNotAllowed
    where it asks for more; it is not lowered silently."""
    allowed = up_to(highest)
    if options.priority in allowed:
        return options.priority
    if "priority" not in options.model_fields_set:
        return highest
    raise PriorityNotAllowed(
        f"priority {options.priority} is not allowed for this caller: ask for {' or '.join(allowed)}, or "
        "leave it out. Who runs the server can allow it for one API key "
        f"(priority={options.priority} after the key in its file) or for everybody "
        f"(--max-priority {options.priority})"
    )


def deadline_s_of(options: ImageOptions, settings: Settings) -> float:
    """The image's deadline or the server's, from when the request came."""
    return (options.deadline_ms or settings.default_deadline_ms) / 1000


def expected(
    options: ImageOptions, asked: ResolvedOptions, settings: Settings, model: ModelInfo, highest: Priority
) -> Expected:
    """What is known of an image before it is decoded, but for its caller, who may ask for no priority above
    ``highest``. Raises PriorityNotAllowed."""
    return Expected(
        share=shares(model, asked.pruning, asked.margin, asked.min_keep_ratio)[-1],
        deadline_s=deadline_s_of(options, settings),
        wait_limit_s=settings.max_queue_s if options.deadline_ms is None else math.inf,
        caller="",
        priority=priority_of(options, highest),
    )
