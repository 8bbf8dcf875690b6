"""The outcomes of the images of a request: all answered or the first problem, or each by itself."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Scope

from app.errors import Problem
from app.http.model_counts import failed
from app.telemetry import metrics

_T = TypeVar("_T")
Answers = Sequence[Coroutine[Any, Any, _T]]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Counts the images that end in a problem or with a disconnect in its block, and, if the ``model`` is
    known, the request of this ``scope``. (A generator would take three times as long to enter and leave.)"""

    images: int
    model: str | None = None
    scope: Scope | None = None

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Problem):
            metrics.labelled(metrics.IMAGES, error.slug).inc(self.images)
        elif isinstance(error, ClientDisconnect):
            metrics.labelled(metrics.IMAGES, "client-gone").inc(self.images)
        else:
            return
        if self.model is not None and self.scope is not None:
            failed(self.model, self.scope)


async def all_or_first_problem(answers: Answers[_T]) -> list[_T]:
    """All answers, or the first problem; then the other images are withdrawn."""
    if len(answers) == 1:
        return [await answers[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer) for answer in answers]
    except* Problem as problems:
        raise problems.exceptions[0] from None
    return [task.result() for task in tasks]


async def answers_or_problems(answers: Answers[_T]) -> list[_T | Problem]:
    """Each answer, or its problem. Other exceptions are raised; then the other images are withdrawn."""

    async def one(answer: Coroutine[Any, Any, _T]) -> _T | Problem:
        try:
            return await answer
        except Problem as problem:
            return problem

    return await all_or_first_problem([one(answer) for answer in answers])
