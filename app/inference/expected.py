"""What is known of an image before it is decoded: its cost, its deadline, its priority."""

import math

from app.dispatch.policy.shares import shares
from app.dispatch.questions import Expected
from app.errors import PriorityNotAllowed
from app.inference.options import ImageOptions
from app.messages.image import Ask
from app.messages.model import ModelInfo
from app.priority import Priority, up_to
from app.settings.limits import LimitSettings


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


def deadline_s_of(options: ImageOptions, settings: LimitSettings) -> float:
    """The image's deadline or the server's, from when the request came."""
    return (options.deadline_ms or settings.default_deadline_ms) / 1000


def expected(
    options: ImageOptions,
    ask: Ask,
    settings: LimitSettings,
    model: ModelInfo,
    highest: Priority,
    caller: str = "",
) -> Expected:
    """What is known of an image before it is decoded. Its caller may ask for no priority above ``highest``.
    Raises PriorityNotAllowed."""
    return Expected(
        share=shares(model, ask)[-1],
        deadline_s=deadline_s_of(options, settings),
        wait_limit_s=settings.max_queue_s if options.deadline_ms is None else math.inf,
        caller=caller,
        priority=priority_of(options, highest),
        model=model.name,
    )
