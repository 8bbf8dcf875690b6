"""What a front end knows about the workers, and how it waits for one."""

import asyncio
import math
import time
from pathlib import Path

from app.errors import NotReady, QueueFull
from app.messages.model import ModelInfo
from app.messages.to_front_end import WorkerState
from app.processes.reports import read_reports, trouble

_SILENCE_S = 3.0  # a dispatcher that is silent for this long is not ready
_RETRY_AFTER_S = 1.0


class Readiness:
    """The readiness of this number of ``workers``. Up to ``most_waiting`` callers wait up to ``patience_s``
    for one, unless the supervisor's ``reports`` say that none will start soon."""

    def __init__(self, workers: int, reports: Path | None, patience_s: float, most_waiting: int) -> None:
        self.models: dict[str, ModelInfo] = {}
        self.workers: list[WorkerState] = []
        self._some_are_ready = False
        self.heard_at = -math.inf
        self.trouble: tuple[str, float] | None = None
        self._workers_to_be = workers
        self._reports = reports
        self._patience_s = patience_s
        self._most_waiting = most_waiting
        self._callers = 0
        self._news = asyncio.Event()

    @property
    def last_model(self) -> ModelInfo | None:
        """The default model of the ``models`` that were served last, even if they are not served now."""
        return next(iter(self.models.values()), None)

    @property
    def model(self) -> ModelInfo | None:
        """The default model. None while no worker is ready or the dispatcher does not respond."""
        return self.last_model if self._some_are_ready and self._is_heard else None

    @property
    def states(self) -> list[dict[str, object]]:
        """The state of each worker, for the operator."""
        missing: list[dict[str, object]] = [
            {"ready": False, "device": None, "images_pending": 0}
            for _ in range(self._workers_to_be - len(self.workers))
        ]
        return [
            {
                "ready": worker.ready and self._is_heard,
                "device": worker.device,
                "images_pending": worker.images,
            }
            for worker in self.workers
        ] + missing

    def told(self, workers: list[WorkerState]) -> None:
        """Store the state of the workers, as the dispatcher sent it."""
        self.workers = workers
        self._some_are_ready = any(worker.ready for worker in workers)
        if self.model is not None:
            self._news.set()

    def lost(self) -> None:
        """Forget the workers, because the dispatcher is gone."""
        self.workers, self.heard_at = [], -math.inf
        self._some_are_ready = False

    def look_for_trouble(self) -> None:
        """While no worker is ready, read the supervisor's reports on whether one is expected."""
        if self._reports is not None:
            self.trouble = None if self.model is not None else trouble(read_reports(self._reports))
        if self.trouble is not None:
            self._news.set()

    async def wait(self, within_s: float) -> ModelInfo:
        """The default model, as soon as a worker is ready. Raises NotReady if none is ready in time or none
        is expected, and QueueFull if too many requests are already waiting."""
        if (model := self.model) is not None:
            return model
        if self._callers >= self._most_waiting:
            raise QueueFull(
                f"no worker is ready, and {self._callers} requests are already waiting for one; retry later",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._callers += 1
        try:
            async with asyncio.timeout(min(within_s, self._patience_s)):
                while (model := self.model) is None:
                    if self.trouble is not None:
                        raise self.not_ready()
                    self._news.clear()
                    await self._news.wait()
                return model
        except TimeoutError:
            raise self.not_ready() from None
        finally:
            self._callers -= 1

    def not_ready(self) -> NotReady:
        """Why no image is computed now, and when to retry."""
        if self.trouble is not None:
            detail, retry_after_s = self.trouble
            return NotReady(detail, retry_after_s=retry_after_s)
        return NotReady("no worker became ready in time; see /readyz", retry_after_s=_RETRY_AFTER_S)

    @property
    def _is_heard(self) -> bool:
        return time.monotonic() - self.heard_at < _SILENCE_S
