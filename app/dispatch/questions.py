"""Requests of a front end to the dispatcher. Pure data."""

import msgspec

from app.dispatch.slot import Slot
from app.messages.image import Ask
from app.messages.to_dispatcher import Record
from app.priority import Priority


class Question(msgspec.Struct, frozen=True):
    """A request for one image; see Record."""

    ask: Ask
    deadline_s: float
    own_deadline: bool = False
    caller: str = ""
    priority: Priority = "normal"
    model: str = ""


class Expected(msgspec.Struct, frozen=True):
    """What is known of a question before its image is decoded: the minimum share of the unpruned ``model``'s
    compute, the time until its deadline, and how long it may wait if the deadline is the server's default
    (infinite if it is its own)."""

    share: float
    deadline_s: float
    wait_limit_s: float
    caller: str
    priority: Priority
    model: str = ""


def record_of(question: Question, number: int, slot: Slot, deadline_s: float) -> Record:
    """The record of the question for the dispatcher, with the image's pixels in that slot."""
    return Record(
        id=number,
        slot=slot.number,
        size=slot.size,
        ask=question.ask,
        deadline_s=deadline_s,
        own_deadline=question.own_deadline,
        caller=question.caller,
        priority=question.priority,
        model=question.model,
    )
