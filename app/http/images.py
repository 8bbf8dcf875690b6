"""One image of a request: as it arrived, as it was answered, and as its answer is cached."""

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
        """Its options."""

    @property
    def size(self) -> int:
        """The number of its bytes."""

    @property
    def content(self) -> tuple[tuple[int, ...], Data]:
        """Its bytes as they arrived; for pixels, with their shape."""

    @property
    def problem(self) -> Problem | None:
        """Why it cannot be answered, if that is already known and the other images are answered anyway."""

    async def decode(self, spec: InputSpec, work: ImageWork, caller: str, take: Take, /) -> tuple[str, ...]:
        """Decode it: ``take`` is called with the input of the model, and the warnings are returned. Raises a
        Problem."""


@dataclass(frozen=True, slots=True)
class AnsweredImage:
    """The request for one image, and its answer. ``warnings``: for its sender, about how it was read.
    ``picture``: the input of the model, if a mask is to be drawn on it. ``cached``: whether the answer is
    from the answer cache; None if there is no cache."""

    ask: Ask
    answer: Answer
    decode_s: float
    warnings: tuple[str, ...] = ()
    picture: UInt8[np.ndarray, "height width 3"] | None = None
    cached: bool | None = None


def from_cache(found: CachedAnswer, model: ModelInfo, ask: Ask, scope: Scope) -> AnsweredImage:
    """A cached answer: it waited for nothing, and nothing was computed."""
    picture = None
    if found.picture is not None:
        share_of(scope).take(len(found.picture))
        picture = np.frombuffer(found.picture, np.uint8).reshape(*model.input.size, 3)
    return AnsweredImage(
        ask, Answer(0, found.prediction, 0.0, 0.0), 0.0, found.warnings, picture, cached=True
    )


def for_cache(answered: AnsweredImage) -> CachedAnswer:
    """The part of an answer that is cached."""
    seen = None if answered.picture is None else answered.picture.tobytes()
    return CachedAnswer(answered.answer.prediction, answered.warnings, seen)
