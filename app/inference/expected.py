"""What is known of an image before it is decoded: its cost, its deadline, its priority."""

import math

from app.dispatch.policy.shares import shares
from app.dispatch.questions import Expected
from app.errors import PriorityNotAllowed
from app.inference.options import ImageOptions
from app.messages.image import Ask
from app.messages.model import ModelInfo
from app.priority import Priority, up_to
from app.settings.own_defaults import own_defaults
from app.settings.settings import Settings


def priority_of(options: ImageOptions, highest: Priority) -> Priority:
    """The priority of an image whose caller may not use more than ``highest``. Raises PriorityNotAllowed if
    it requests more; it is not lowered silently."""
    allowed = up_to(highest)
    if options.priority in allowed:
        return options.priority
    if "priority" not in options.model_fields_set:
        return highest
    raise PriorityNotAllowed(
        f"priority {options.priority} is not allowed for this caller: use {' or '.join(allowed)}, or "
        f"leave it out. The operator can allow it for one API key (priority={options.priority} after the "
        f"key in its file) or for all callers (--max-priority {options.priority})"
    )


def default_deadline_ms(settings: Settings, model: str | None) -> int:
    """The deadline of images that name none: the default of the model of that name, else that of the
    server."""
    return settings.own_defaults(model).deadline_ms or settings.default_deadline_ms


def longest_default_deadline_s(settings: Settings) -> float:
    """The longest default deadline of all models, for use while the requested model is not known."""
    own = {} if settings.model_default is None else own_defaults(settings.model_default)
    return max(settings.default_deadline_ms, *(each.deadline_ms or 0 for each in own.values()), 0) / 1000


def deadline_s_of(options: ImageOptions, settings: Settings, model: str | None) -> float:
    """The image's deadline, or the default one of the model of that name, from the arrival of the request."""
    return (options.deadline_ms or default_deadline_ms(settings, model)) / 1000


def expected(
    options: ImageOptions,
    ask: Ask,
    settings: Settings,
    model: ModelInfo,
    highest: Priority,
    caller: str = "",
) -> Expected:
    """What is known of an image before it is decoded. Its caller may not use a priority above ``highest``.
    Raises PriorityNotAllowed."""
    return Expected(
        share=shares(model, ask)[-1],
        deadline_s=deadline_s_of(options, settings, model.name),
        wait_limit_s=settings.max_queue_s if options.deadline_ms is None else math.inf,
        caller=caller,
        priority=priority_of(options, highest),
        model=model.name,
    )
