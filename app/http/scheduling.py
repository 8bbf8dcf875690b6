"""What the scheduling of the engines must know of a request beside its images."""

from fastapi import Request

from app.engine.client import Expected
from app.engine.messages import ModelInfo
from app.engine.shares import shares
from app.http.pruning import Asked
from app.http.schemas import ImageOptions
from app.settings import Settings


def caller_of(request: Request) -> str:
    """Whose share of the engines a request takes: the name that its API key stands for, where it has one, or
    the client's address."""
    named: str | None = getattr(request.state, "caller", None)
    if named is not None:
        return named
    return "" if request.client is None else request.client.host


def expected(
    options: ImageOptions, asked: Asked, settings: Settings, model: ModelInfo, caller: str
) -> Expected:
    """What is known of an image before it is decoded."""
    own_deadline = options.deadline_ms is not None
    allowed_s = (options.deadline_ms or settings.default_deadline_ms) / 1000
    return Expected(
        share=shares(model, asked.pruning, asked.margin, asked.min_keep_ratio)[-1],
        allowed_s=allowed_s if own_deadline else min(allowed_s, settings.max_queue_s),
        own_deadline=own_deadline,
        caller=caller,
        priority=options.priority,
    )
