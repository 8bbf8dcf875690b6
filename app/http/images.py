"""One image of a request: as it came, as it was answered, and as its answer is kept."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import UInt8
from starlette.types import Scope

from app.decoding.image_work import ImageWork
from app.decoding.images import Data, Take
from app.errors import Problem
from app.http.answer_cache import CachedAnswer
from app.http.bodies.memory import share_of
from app.inference.options import ImageOptions
from app.messages.image import Ask
from app.messages.model import ModelInfo
from app.messages.to_front_end import Answer
from models.transforms import InputSpec


class RequestedImage(Protocol):
    """One encoded image and its options."""

    @property
    def options(self) -> ImageOptions:
        """What is asked."""

    @property
    def size(self) -> int:
        """Bytes that it holds."""

    @property
    def content(self) -> tuple[tuple[int, ...], Data]:
        """Its bytes as they came; of pixels with their shape."""

    @property
    def problem(self) -> Problem | None:
        """Why it cannot be answered, where that is known and the others are answered all the same."""

    async def decode(self, spec: InputSpec, work: ImageWork, caller: str, take: Take, /) -> tuple[str, ...]:
        """Have what the model sees of it taken, and give back the warnings; raises a Problem."""


@dataclass(frozen=True, slots=True)
class AnsweredImage:
    """What was asked of one image, and its answer. ``warnings``: what its sender should know of how it was
    read. ``picture``: what the model saw, where a mask is to be drawn over it. ``cached``: whether the answer
    is from the answer cache, None where there is none."""

    ask: Ask
    answer: Answer
    decode_s: float
    warnings: tuple[str, ...] = ()
    picture: UInt8[np.ndarray, "height width 3"] | None = None
    cached: bool | None = None


def from_cache(found: CachedAnswer, model: ModelInfo, ask: Ask, scope: Scope) -> AnsweredImage:
    """What was kept, as an answer: it waited for nothing, and nothing was computed."""
    picture = None
    if found.picture is not None:
        share_of(scope).take(len(found.picture))
        picture = np.frombuffer(found.picture, np.uint8).reshape(*model.input.size, 3)
    return AnsweredImage(
        ask, Answer(0, found.prediction, 0.0, 0.0), 0.0, found.warnings, picture, cached=True
    )


def for_cache(answered: AnsweredImage) -> CachedAnswer:
    """What is kept of an answer."""
    seen = None if answered.picture is None else answered.picture.tobytes()
    return CachedAnswer(answered.answer.prediction, answered.warnings, seen)
