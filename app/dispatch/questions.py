"""What a front end asks of the dispatcher. Pure data."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from app.messages.image import Ask
from app.messages.to_dispatcher import Record
from app.priority import Priority


@dataclass(frozen=True, slots=True)
class Question:
    """One image and what is asked of it; see Record. ``pixels`` have the size of the model's input."""

    pixels: UInt8[np.ndarray, "height width 3"]
    ask: Ask
    deadline_s: float
    own_deadline: bool = False
    min_keep_ratio: float | None = None
    caller: str = ""
    priority: Priority = "normal"


@dataclass(frozen=True, slots=True)
class Expected:
    """What is known of a question before its image is decoded: the share of the unpruned model's compute that
    it will cost at least, what is left until its deadline, and how long it may wait if that is the server's
    (infinite if it is its own)."""

    share: float
    deadline_s: float
    wait_limit_s: float
    caller: str
    priority: Priority


def record_of(question: Question, number: int, slot: int, deadline_s: float) -> Record:
    """The question as the dispatcher is sent it, with its pixels in that slot."""
    return Record(
        id=number,
        slot=slot,
        size=question.pixels.nbytes,
        ask=question.ask,
        deadline_s=deadline_s,
        own_deadline=question.own_deadline,
        min_keep_ratio=question.min_keep_ratio,
        caller=question.caller,
        priority=question.priority,
    )
