"""Priorities of images, and which of them a caller may use."""

from typing import Literal, get_args

Priority = Literal["high", "normal", "batch"]

PRIORITIES: tuple[Priority, ...] = get_args(Priority)  # the highest first


def up_to(highest: Priority) -> tuple[Priority, ...]:
    """The priorities up to this one, the highest first."""
    return PRIORITIES[PRIORITIES.index(highest) :]
