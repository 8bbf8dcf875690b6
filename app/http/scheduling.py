"""What the scheduling of the engines must know of a request beside its images."""

import math

from starlette.types import Scope

from app.engine.client import Expected
from app.engine.messages import ModelInfo
from app.engine.shares import shares
from app.http.pruning import Asked
from app.http.schemas import ImageOptions
from app.settings import Settings


def caller_of(scope: Scope) -> str:
    """Whose share of the engines a request takes: the name that its API key stands for, where it has one, or
    the client's address."""
    named: str | None = scope.get("state", {}).get("caller")
    if named is not None:
        return named
    client: tuple[str, int] | None = scope.get("client")
    return "" if client is None else client[0]


def deadline_s_of(options: ImageOptions, settings: Settings) -> float:
    """The image's deadline or the server's, from when the request came."""
    return (options.deadline_ms or settings.default_deadline_ms) / 1000


def expected(options: ImageOptions, asked: Asked, settings: Settings, model: ModelInfo) -> Expected:
    """What is known of an image before it is decoded, but for its caller."""
    return Expected(
        share=shares(model, asked.pruning, asked.margin, asked.min_keep_ratio)[-1],
        deadline_s=deadline_s_of(options, settings),
        wait_limit_s=settings.max_queue_s if options.deadline_ms is None else math.inf,
        caller="",
        priority=options.priority,
    )
