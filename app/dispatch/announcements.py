"""Periodic messages to all front ends: the state of the workers and the predicted wait. Pure."""

import math
from collections.abc import Iterable, Mapping

import msgspec

from app.dispatch.fleet import Fleet
from app.dispatch.outbox import Outbox
from app.dispatch.policy.brown_out import CEILINGS
from app.messages.to_front_end import Workers
from app.telemetry import metrics

_LOAD_EVERY_S = 0.05  # minimum interval between load messages to front ends
_SIGN_OF_LIFE_EVERY_S = 0.5


class Announcements:
    """Sends the state of the workers and the load when they change. ``workers_changed`` and ``load_changed``
    are set by whoever changes them."""

    def __init__(self, outbox: Outbox) -> None:
        self.workers_changed = self.load_changed = True
        self._outbox = outbox
        self._load_told = self._workers_told = -math.inf

    def tell_workers(self, fleet: Fleet, front_ends: Iterable[int], now: float) -> None:
        """Send the state of the workers when it has changed, and twice a second as a sign of life."""
        if not self.workers_changed and now < self._workers_told + _SIGN_OF_LIFE_EVERY_S:
            return
        self.workers_changed, self._workers_told = False, now
        message = Workers(fleet.states(now))
        for peer in front_ends:
            self._outbox.tell_front_end(peer, message, passing=True)

    def tell_load(self, fleet: Fleet, beside: int, seen: Mapping[int, int], now: float) -> None:
        """Send the load when it has changed. ``beside``: images that wait outside the scheduler's queue.
        ``seen``: the last record of each front end."""
        if not self.load_changed or now < self._load_told + _LOAD_EVERY_S:
            return
        self.load_changed, self._load_told = False, now
        scheduler = fleet.scheduler
        metrics.BROWN_OUT.set(CEILINGS[scheduler.depth])
        metrics.QUEUE_SECONDS.set(scheduler.waiting_s)
        metrics.QUEUE_IMAGES.set(scheduler.waiting_images + beside)
        metrics.QUEUE_TOKENS.set(scheduler.waiting_tokens)
        if (load := fleet.load(now)) is None:
            return
        for peer, number in seen.items():
            told = msgspec.structs.replace(load, seen=number)
            self._outbox.tell_front_end(peer, told, passing=True)

    @property
    def due(self) -> float:
        """The time of the next announcement."""
        due = self._workers_told + _SIGN_OF_LIFE_EVERY_S
        return min(due, self._load_told + _LOAD_EVERY_S) if self.load_changed else due
