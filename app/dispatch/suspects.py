"""Images that a worker died computing. Each is computed alone, so that a faulty one affects no others. An
image that two workers died computing is refused. Pure."""

from collections.abc import Hashable
from dataclasses import dataclass, field

from app.dispatch.policy.batches import Batch
from app.dispatch.policy.scheduler import Scheduler

WORKERS_AN_IMAGE_MAY_OUTLIVE = 2


@dataclass(slots=True)
class Suspects:
    """The images to try, in order, and the worker that is reserved for them. One is tried at a time."""

    _keys: dict[Hashable, None] = field(default_factory=dict)
    _worker: int | None = None
    trial: Batch | None = None

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def waiting(self) -> bool:
        """Whether an image is to be tried, or is being tried."""
        return bool(self._keys) or self.trial is not None

    @property
    def set_apart(self) -> int | None:
        """The worker that computes nothing else."""
        return self._worker

    def add(self, key: Hashable) -> None:
        """Try that image."""
        self._keys[key] = None

    def withdraw(self, key: Hashable) -> None:
        """Remove an image that nobody waits for, if it is among them."""
        self._keys.pop(key, None)

    def next(self, scheduler: Scheduler) -> tuple[int, Hashable] | None:
        """The worker and the image to try now. None if there is no image to try, or the worker is still busy.
        From then on, the worker gets nothing else, because other images could be lost together with a
        suspect."""
        if self.trial is not None or not self._keys:
            return None
        if self._worker is None:
            self._worker = scheduler.least_loaded()
        lane = scheduler.workers[self._worker]
        lane.accepting = False
        if lane.running:
            return None
        key = next(iter(self._keys))
        del self._keys[key]
        return self._worker, key

    def ended(self) -> None:
        """End the trial."""
        self.trial = None
        if not self._keys:
            self._worker = None

    def lost(self, worker: int) -> None:
        """Note that the worker is gone."""
        if worker == self._worker:
            self.trial = self._worker = None
