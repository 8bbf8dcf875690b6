"""A front end's link to the engines.

Pixels stay here until the answer is there, so what a dying engine had is sent again: to another engine, or
to its successor, for which everything waits as long as it may. Images that an engine died computing are
suspects: they go first and one at a time, and the engine computes nothing beside them, so that the one at
fault is alone when it kills the next engine; then it is given up, lest it take down a third.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import zmq
import zmq.asyncio
from jaxtyping import UInt8

from app.engine.answers import Classified as Classified
from app.engine.answers import read_answer
from app.engine.messages import (
    Answer,
    Begun,
    Cancel,
    FromFrontEnd,
    Load,
    ModelInfo,
    Ping,
    Priority,
    Refuse,
    Status,
    Submit,
    decode_from_engine,
    encode,
)
from app.engine.outlook import Outlook
from app.engine.pool import Standing, choose
from app.engine.shares import shares
from app.engine.smoothed import Smoothed
from app.errors import (
    DeadlinePassed,
    DeadlineUnmeetable,
    EngineLost,
    InternalFault,
    NotReady,
    OutOfMemory,
    Problem,
    QueueFull,
)
from app.processes import background
from app.processes.reports import read_reports, trouble
from app.telemetry import metrics
from app.telemetry.logs import request_id
from app.telemetry.rarely import Rarely
from models.schedule import Pruning

log = logging.getLogger(__name__)

_PING_EVERY_S = 0.25
_PING_LOADING_EVERY_S = 0.05  # so that it is known at once when it has loaded
_SILENCE_S = 3.0  # an engine that says nothing for so long is not ready
_ENGINES_AN_IMAGE_MAY_OUTLIVE = 2
# Of those that had it, but did not say that they had begun it: they may have had no time to.
_ENGINES_AN_IMAGE_MAY_SEE_DIE = 5
_RETRY_AFTER_S = 1.0
_REPORTS_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Question:
    """One image and what is asked of it; see Submit. ``pixels`` have the size of the model's input."""

    pixels: UInt8[np.ndarray, "height width 3"]
    pruning: Pruning
    top_k: int
    kept_patches: bool
    deadline_s: float
    margin: float | None = None
    logits: bool = False
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


@dataclass(slots=True)
class _Pending:
    """An image on its way. ``link``: the engine that has it, if any; ``losses``: engines that died while
    they had it; ``crashes``: those of them that computed it."""

    submit: Submit
    pixels: bytes
    answered: asyncio.Future[Classified]
    given_up_at: float
    request_id: str | None
    link: "_Link | None" = None
    begun: bool = False
    crashes: int = 0
    losses: int = 0


@dataclass(slots=True)
class _Link:
    """One engine: its socket, its last word, and what it has of ours."""

    address: str
    socket: zmq.asyncio.Socket | None = None
    status: Status | None = None
    heard: float = float("-inf")
    outlook: Outlook = field(default_factory=Outlook)
    standing: Standing = field(default_factory=Standing)
    pending: dict[int, _Pending] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return (
            self.status is not None
            and self.status.model is not None
            and time.monotonic() - self.heard < _SILENCE_S
        )

    @property
    def tries_a_suspect(self) -> bool:
        return any(pending.crashes for pending in self.pending.values())


class EngineClient:
    """Asks the engines at ``addresses``; an image goes where it will be done first (app.engine.pool).

    While none is ready, up to ``most_waiting`` images wait up to ``patience_s`` for one, unless the
    supervisor's ``reports`` say that none will come up soon.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        reports: Path | None = None,
        patience_s: float = 30.0,
        most_waiting: int = 1024,
    ) -> None:
        self._links = [_Link(address) for address in addresses]
        self._reports = reports
        self._patience_s = patience_s
        self._most_waiting = most_waiting
        self._context = zmq.asyncio.Context()
        self._tasks: list[asyncio.Task[None]] = []
        self._waiting: dict[int, _Pending] = {}
        self._callers = 0
        self._news = asyncio.Event()
        self._trouble: tuple[str, float] | None = None
        self._last_id = 0
        self._last_model: ModelInfo | None = None
        self._way = Smoothed()
        self._nonsense = Rarely()

    def __repr__(self) -> str:
        ready = sum(link.ready for link in self._links)
        pending = len(self._waiting) + sum(len(link.pending) for link in self._links)
        return f"<EngineClient {ready} of {len(self._links)} engines ready, {pending} images pending>"

    async def start(self) -> None:
        """Connect; engines may come up later."""
        self._tasks = [
            background.kept(partial(self._keep_linked, link), "link to an engine") for link in self._links
        ]
        self._tasks.append(background.kept(self._read_reports, "reports of engines"))

    async def close(self) -> None:
        """Disconnect. What is still pending fails as NotReady."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pending in [
            *self._waiting.values(),
            *(image for link in self._links for image in link.pending.values()),
        ]:
            _fail(pending, NotReady("the server is shutting down", retry_after_s=_RETRY_AFTER_S))
        self._context.destroy(linger=0)  # whatever is still open; `term` would wait for it for ever

    @property
    def model(self) -> ModelInfo | None:
        """What the engines serve; None until one has loaded, warmed up and answers."""
        return next((link.status.model for link in self._links if link.ready and link.status), None)

    @property
    def last_model(self) -> ModelInfo | None:
        """What an engine was ready to serve last, whether or not it still is; None before one was."""
        return self._last_model

    @property
    def work(self) -> float:
        """Our images that engines have in hand, in unpruned images: each counts as its share of compute."""
        return sum(link.standing.work for link in self._links)

    @property
    def engines(self) -> list[dict[str, object]]:
        """How each engine is, for the operator."""
        return [
            {
                "ready": link.ready,
                "device": link.status.model.device if link.status and link.status.model else None,
                "images_pending": len(link.pending),
            }
            for link in self._links
        ]

    def refusal(self, expected: Expected) -> Problem | None:
        """What the engines are known to answer to such an image; None where one may accept it."""
        now = time.monotonic()
        deadline_s = self._for_engine(expected.deadline_s)
        waits = []
        for link in self._links:
            if not link.ready:
                continue
            wait = link.outlook.refuses(
                expected.caller,
                expected.priority,
                expected.share,
                deadline_s,
                expected.wait_limit_s,
                now,
            )
            if wait is None:
                return None
            waits.append(wait)
        if not waits:
            return None
        soonest = min(waits)
        if expected.wait_limit_s < math.inf and soonest < math.inf:
            return _queue_full(soonest)
        return _unmeetable(None if soonest == math.inf else soonest)

    @contextmanager
    def expecting(self, expected: Expected) -> Iterator[None]:
        """Around the decoding of an image. Raises QueueFull or DeadlineUnmeetable where the engines are known
        to refuse it, so that it need not be decoded."""
        if (refusal := self.refusal(expected)) is not None:
            raise refusal
        outlooks = [link.outlook for link in self._links if link.ready]
        for outlook in outlooks:
            outlook.decoding(expected.caller, expected.priority, expected.share / len(outlooks))
        try:
            yield
        finally:
            for outlook in outlooks:
                outlook.decoded(expected.caller, expected.priority, expected.share / len(outlooks))

    @property
    def trouble(self) -> str | None:
        """Why no engine is ready, where the supervisor has said that none will be soon."""
        return None if self._trouble is None or self.model is not None else self._trouble[0]

    async def wait_until_ready(self, within_s: float) -> ModelInfo:
        """What the engines serve, as soon as one is ready. Raises NotReady where none is in time or none is
        expected, QueueFull where too many wait already."""
        if (model := self.model) is not None:
            return model
        if self._callers >= self._most_waiting:
            raise QueueFull(
                f"no engine is ready and {self._callers} requests wait for one already",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._callers += 1
        try:
            async with asyncio.timeout(min(within_s, self._patience_s)):
                while (model := self.model) is None:
                    if self._trouble is not None:
                        raise self._not_ready()
                    self._news.clear()
                    await self._news.wait()
                return model
        except TimeoutError:
            raise self._not_ready() from None
        finally:
            self._callers -= 1

    async def classify(self, question: Question) -> Classified:
        """Raises NotReady, QueueFull, DeadlineUnmeetable, DeadlinePassed, OutOfMemory or EngineLost.
        Cancelling it withdraws the image."""
        self._last_id += 1
        submit = Submit(
            id=self._last_id,
            pruning=question.pruning,
            margin=question.margin,
            top_k=question.top_k,
            kept_patches=question.kept_patches,
            deadline_s=self._for_engine(question.deadline_s),
            logits=question.logits,
            own_deadline=question.own_deadline,
            min_keep_ratio=question.min_keep_ratio,
            caller=question.caller,
            priority=question.priority,
        )
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        pending = _Pending(
            submit,
            np.ascontiguousarray(question.pixels).tobytes(),
            loop.create_future(),
            time.monotonic() + question.deadline_s,
            request_id.get(),
        )
        patience = loop.call_later(self._patience_s, self._lose_patience, pending)
        try:
            async with asyncio.timeout(question.deadline_s):
                if (link := self._free_link(submit)) is not None:
                    await self._submit(link, pending, submit)
                else:
                    self._let_wait(pending)
                classified = await pending.answered
                self._way.observe(_way_s(classified.answer, time.monotonic() - began))
                return classified
        except TimeoutError:
            raise DeadlinePassed(
                f"no answer within the {question.deadline_s * 1000:.0f} ms that were left until the deadline "
                "when the image went to an engine"
            ) from None
        finally:
            patience.cancel()
            self._waiting.pop(submit.id, None)
            if pending.link is not None:
                del pending.link.pending[submit.id]
                pending.link.standing.ended(submit.id)
                if not pending.answered.done() or pending.answered.cancelled():
                    await self._send(pending.link, Cancel(id=submit.id))
                if pending.crashes:
                    await self._place_waiting()

    def _for_engine(self, deadline_s: float) -> float:
        """What is left of a deadline for the engine, by how long the way there and back took lately."""
        return deadline_s - self._way.allowance_s(deadline_s)

    # --- who gets which image -----------------------------------------------------------------------
    def _free_link(self, submit: Submit) -> _Link | None:
        """The engine for an image; None where it must wait for one."""
        free = [link for link in self._links if link.ready and not link.tries_a_suspect]
        if not free:
            return None
        engines = [(link.outlook, link.standing) for link in free]
        share = _shares(free[0], submit)[0]
        return free[choose(engines, share, submit.caller, submit.priority, time.monotonic())]

    async def _submit(self, link: _Link, pending: _Pending, submit: Submit) -> None:
        pending.link, pending.begun = link, False
        link.pending[submit.id] = pending
        most, *_, least = _shares(link, submit)
        link.standing.sent(submit.id, most)
        link.outlook.sent(submit.id, submit.caller, submit.priority, least)
        await self._send(link, submit, pending.pixels)

    def _let_wait(self, pending: _Pending) -> None:
        if self._trouble is not None:
            raise self._not_ready()
        if len(self._waiting) >= self._most_waiting:
            raise QueueFull(
                f"no engine is ready and {len(self._waiting)} images wait for one already",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._waiting[pending.submit.id] = pending

    async def _place_waiting(self) -> None:
        """Send what waits to engines that are ready: suspects first, one at a time, then in order."""
        waiting = [image for image in self._waiting.values() if not image.answered.done()]
        suspects = [image for image in waiting if image.crashes]
        others = [image for image in waiting if not image.crashes]
        if any(link.tries_a_suspect for link in self._links):
            suspects = []
        for pending in [*suspects[:1], *others]:
            if (link := self._free_link(pending.submit)) is None:
                return
            del self._waiting[pending.submit.id]
            left_s = self._for_engine(max(0.0, pending.given_up_at - time.monotonic()))
            suspect = pending.crashes > 0
            rest = msgspec.structs.replace(pending.submit, deadline_s=left_s, suspect=suspect)
            await self._submit(link, pending, rest)

    async def _lost(self, link: _Link, *, died: bool) -> None:
        """The engine has gone, or the link to it: what it had waits for another, or for its successor."""
        had, link.pending = link.pending, {}
        link.outlook.lost()
        link.standing.lost()
        was_ready, link.status = link.status is not None and link.status.model is not None, None
        computed = 0
        for pending in had.values():
            pending.link = None
            if pending.answered.done():
                continue
            pending.losses += died
            if pending.begun and died:
                computed += 1
                pending.crashes += 1
            if (
                pending.crashes >= _ENGINES_AN_IMAGE_MAY_OUTLIVE
                or pending.losses >= _ENGINES_AN_IMAGE_MAY_SEE_DIE
            ):
                detail = (
                    f"{pending.losses} engines died while they had this image, {pending.crashes} of them "
                    "while they computed it"
                )
                log.error("an image is refused: %s", detail, extra={"request_id": pending.request_id})
                _fail(pending, EngineLost(detail))
            else:
                metrics.IMAGES_SENT_AGAIN.inc()
                self._waiting[pending.submit.id] = pending
        if was_ready:
            log.warning(
                "lost an engine that had %d of our images, %d of them being computed", len(had), computed
            )
        self._waiting = dict(sorted(self._waiting.items()))  # numbered in the order in which they came
        await self._place_waiting()

    def _lose_patience(self, pending: _Pending) -> None:
        """Give up an image that no engine has had yet. What one had is worth waiting for until the
        deadline."""
        if pending.submit.id in self._waiting and not pending.crashes:
            _fail(pending, self._not_ready())

    def _not_ready(self) -> NotReady:
        if self._trouble is not None:
            detail, retry_after_s = self._trouble
            return NotReady(detail, retry_after_s=retry_after_s)
        return NotReady("no engine became ready in time; see /readyz", retry_after_s=_RETRY_AFTER_S)

    async def _read_reports(self) -> None:
        """While no engine is ready, hear from the supervisor whether one is to be expected."""
        while self._reports is not None:
            self._trouble = None if self.model is not None else trouble(read_reports(self._reports))
            if self._trouble is not None:
                self._news.set()
                for pending in list(self._waiting.values()):
                    _fail(pending, self._not_ready())
            await asyncio.sleep(_REPORTS_EVERY_S)

    # --- the engines --------------------------------------------------------------------------------
    async def _keep_linked(self, link: _Link) -> None:
        """A socket for each life of the engine: what an old one had not delivered must not reach the
        successor, which is sent all of it anew."""
        while True:
            try:
                await self._talk(link)
            except Exception:
                await self._lost(link, died=False)
                raise
            await self._lost(link, died=True)

    async def _talk(self, link: _Link) -> None:
        """Until the engine has gone. Raises what went wrong in any part of it."""
        with contextlib.ExitStack() as stack:
            socket = self._context.socket(zmq.DEALER)
            stack.callback(socket.close, 0)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            stack.callback(monitor.close, 0)
            stack.callback(socket.disable_monitor)
            socket.connect(link.address)
            link.socket = socket
            parts = {
                background.awaited(_next_event(monitor), "end of an engine"),
                background.awaited(self._receive(link, socket), "receive from an engine"),
                background.awaited(self._ping(link), "ping an engine"),
            }
            try:
                ended, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
                for part in ended:
                    part.result()
                await self._hear_out(link, socket)
            finally:
                # All of this before anything is awaited: a second cancellation would leave the socket open.
                for part in parts:
                    part.cancel()
                link.socket = None
                stack.close()
                await asyncio.gather(*parts, return_exceptions=True)

    def _tell_of_nonsense(self, what: str, error: Exception) -> None:
        if (left_out := self._nonsense.due(time.monotonic())) is not None:
            log.error("%s: %s; %d like it before were not told", what, error, left_out)

    async def _hear_out(self, link: _Link, socket: zmq.asyncio.Socket) -> None:
        """What the engine had said before it went."""
        with contextlib.suppress(zmq.Again):
            while True:
                await self._hear(link, *await socket.recv_multipart(zmq.NOBLOCK))

    def _classes(self, link: _Link) -> int:
        model = link.status.model if link.status is not None else None
        model = model or self._last_model
        return 0 if model is None else len(model.labels)

    async def _send(self, link: _Link, message: FromFrontEnd, *frames: bytes) -> None:
        if link.socket is not None:
            await link.socket.send_multipart([encode(message), *frames])

    async def _ping(self, link: _Link) -> None:
        while True:
            await self._send(link, Ping())
            loading = link.status is not None and link.status.model is None
            await asyncio.sleep(_PING_LOADING_EVERY_S if loading else _PING_EVERY_S)

    async def _receive(self, link: _Link, socket: zmq.asyncio.Socket) -> None:
        while True:
            await self._hear(link, *await socket.recv_multipart())

    async def _hear(self, link: _Link, head: bytes, *frames: bytes) -> None:
        link.heard = time.monotonic()
        try:
            message = decode_from_engine(head)
        except msgspec.DecodeError as error:
            self._tell_of_nonsense("an engine sent what is no message", error)
            return
        match message:
            case Status():
                link.status = message
                if message.model is not None:
                    self._last_model = message.model
                    self._news.set()
                    await self._place_waiting()
            case Load():
                link.outlook.tell(message, time.monotonic())
            case Begun():
                for image in message.ids:
                    if (pending := link.pending.get(image)) is not None:
                        pending.begun = True
            case Answer():
                pending = link.pending.get(message.id)
                if pending is not None and not pending.answered.done():
                    try:
                        classified = read_answer(message, frames, pending.submit, self._classes(link))
                    except ValueError as error:
                        self._tell_of_nonsense("an engine sent what is no answer to its image", error)
                        _fail(pending, InternalFault("the engine's answer to this image cannot be used"))
                    else:
                        pending.answered.set_result(classified)
            case Refuse(reason="not-ready"):
                if (pending := link.pending.pop(message.id, None)) is not None:
                    link.standing.ended(message.id)
                    pending.link, link.status = None, None
                    self._waiting[message.id] = pending
            case Refuse():
                if (pending := link.pending.get(message.id)) is not None:
                    _fail(pending, _problem(message))


async def _next_event(monitor: zmq.asyncio.Socket) -> None:
    await monitor.recv_multipart()


def _way_s(answer: Answer, whole_s: float) -> float:
    """What of the time until an answer was neither spent in the engine's queue nor in computing: on the way,
    and until either side came to it."""
    return max(0.0, whole_s - answer.queue_s - answer.compute_s)


def _shares(link: _Link, submit: Submit) -> tuple[float, ...]:
    assert link.status is not None
    assert link.status.model is not None
    return shares(link.status.model, submit.pruning, submit.margin, submit.min_keep_ratio)


def _fail(pending: _Pending, problem: Problem) -> None:
    if not pending.answered.done():
        pending.answered.set_exception(problem)


def _problem(refusal: Refuse) -> Problem:
    match refusal.reason:
        case "queue-full":
            return _queue_full(refusal.retry_after_s)
        case "deadline-unmeetable":
            return _unmeetable(refusal.retry_after_s)
        case "deadline-passed":
            return DeadlinePassed("the deadline passed while the image was waiting")
        case "out-of-memory":
            return OutOfMemory(
                "the engine has not enough memory for this image, even alone",
                retry_after_s=refusal.retry_after_s,
            )
        case "no-number":
            return InternalFault(
                "the network's scores for this image are not finite numbers, so there is no answer; a wider "
                "--dtype may help"
            )
        case _:
            return InternalFault("the engine failed on this image, and on no other of its batch; see its log")


def _queue_full(retry_after_s: float | None) -> Problem:
    return QueueFull("the engine has too much work waiting", retry_after_s=retry_after_s or _RETRY_AFTER_S)


def _unmeetable(retry_after_s: float | None) -> Problem:
    if retry_after_s is None:
        return DeadlineUnmeetable("even an idle engine is predicted to take longer than the deadline")
    return DeadlineUnmeetable(
        "the images that wait are predicted to take until after the deadline", retry_after_s=retry_after_s
    )
