"""A front end's link to the engines.

Pixels stay here until the answer is there, so what a dying engine had is sent again to its successor. An
image that two engines died with is given up, lest it take down a third.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import numpy as np
import zmq
import zmq.asyncio
from jaxtyping import Float32, UInt8, UInt16

from app.engine.messages import (
    Answer,
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
from app.engine.shares import shares
from app.errors import (
    DeadlinePassed,
    DeadlineUnmeetable,
    EngineLost,
    InternalFault,
    NotReady,
    Problem,
    QueueFull,
)
from models.schedule import Pruning

log = logging.getLogger(__name__)

_PING_EVERY_S = 0.25
_SILENCE_S = 3.0  # an engine that says nothing for so long is not ready
_ENGINES_AN_IMAGE_MAY_OUTLIVE = 2
_RETRY_AFTER_S = 1.0


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
    """What is known of a question before its image is decoded: how long it may wait, and the share of the
    unpruned model's compute that it will cost at least."""

    share: float
    allowed_s: float
    own_deadline: bool
    caller: str
    priority: Priority


@dataclass(frozen=True, slots=True)
class Classified:
    """An answer with its kept patches and, if asked for, its logits; see models.classifier.Prediction for
    their meaning."""

    answer: Answer
    kept: tuple[UInt16[np.ndarray, " kept"], ...]
    logits: Float32[np.ndarray, " classes"] | None = None


@dataclass(slots=True)
class _Pending:
    submit: Submit
    pixels: bytes
    answered: asyncio.Future[Classified]
    incarnation: str
    given_up_at: float
    sent: int = 1


@dataclass(slots=True)
class _Link:
    """One engine: its socket, its last word, and what it has of ours."""

    socket: zmq.asyncio.Socket
    status: Status | None = None
    heard: float = float("-inf")
    outlook: Outlook = field(default_factory=Outlook)
    pending: dict[int, _Pending] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return (
            self.status is not None
            and self.status.model is not None
            and time.monotonic() - self.heard < _SILENCE_S
        )


class EngineClient:
    """Asks the engines at ``addresses``; the one with the fewest of our images in hand gets the next."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = tuple(addresses)
        self._context = zmq.asyncio.Context()
        self._links: list[_Link] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._last_id = 0

    def __repr__(self) -> str:
        ready = sum(link.ready for link in self._links)
        pending = sum(len(link.pending) for link in self._links)
        return f"<EngineClient {ready} of {len(self._addresses)} engines ready, {pending} images pending>"

    async def start(self) -> None:
        """Connect; engines may come up later."""
        for address in self._addresses:
            socket = self._context.socket(zmq.DEALER)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.connect(address)
            link = _Link(socket)
            self._links.append(link)
            self._tasks += [
                asyncio.create_task(self._receive(link), name=f"receive from {address}"),
                asyncio.create_task(self._ping(link), name=f"ping {address}"),
            ]

    async def close(self) -> None:
        """Disconnect. What is still pending fails as NotReady."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in self._links:
            for pending in link.pending.values():
                _fail(pending, NotReady("the server is shutting down", retry_after_s=_RETRY_AFTER_S))
            link.socket.close()
        self._context.term()

    @property
    def model(self) -> ModelInfo | None:
        """What the engines serve; None until one has loaded, warmed up and answers."""
        return next((link.status.model for link in self._links if link.ready and link.status), None)

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

    @contextmanager
    def expecting(self, expected: Expected) -> Iterator[None]:
        """Around the decoding of an image. Raises QueueFull or DeadlineUnmeetable where the engines are known
        to refuse it, so that it need not be decoded."""
        outlooks = [link.outlook for link in self._links if link.ready]
        now = time.monotonic()
        allowed = expected.allowed_s
        refused = [outlook.refuses(expected.caller, expected.priority, allowed, now) for outlook in outlooks]
        waits = [wait for wait in refused if wait is not None]
        if outlooks and len(waits) == len(outlooks):
            raise _unmeetable(min(waits)) if expected.own_deadline else _queue_full(min(waits))
        for outlook in outlooks:
            outlook.decoding(expected.share / len(outlooks))
        try:
            yield
        finally:
            for outlook in outlooks:
                outlook.decoding(-expected.share / len(outlooks))

    async def classify(self, question: Question) -> Classified:
        """Raises NotReady, QueueFull, DeadlineUnmeetable, DeadlinePassed or EngineLost. Cancelling it
        withdraws the image."""
        ready = [link for link in self._links if link.ready]
        if not ready:
            raise NotReady("no engine is ready; see /readyz", retry_after_s=_RETRY_AFTER_S)
        link = min(ready, key=lambda candidate: len(candidate.pending))
        assert link.status is not None
        self._last_id += 1
        submit = Submit(
            id=self._last_id,
            pruning=question.pruning,
            margin=question.margin,
            top_k=question.top_k,
            kept_patches=question.kept_patches,
            deadline_s=question.deadline_s,
            logits=question.logits,
            own_deadline=question.own_deadline,
            min_keep_ratio=question.min_keep_ratio,
            caller=question.caller,
            priority=question.priority,
        )
        assert link.status.model is not None
        least = shares(link.status.model, submit.pruning, submit.margin, submit.min_keep_ratio)[-1]
        link.outlook.sent(submit.id, least)
        pending = _Pending(
            submit,
            np.ascontiguousarray(question.pixels).tobytes(),
            asyncio.get_running_loop().create_future(),
            link.status.incarnation,
            time.monotonic() + question.deadline_s,
        )
        link.pending[submit.id] = pending
        try:
            async with asyncio.timeout(question.deadline_s):
                await self._send(link, submit, pending.pixels)
                return await pending.answered
        except TimeoutError:
            raise DeadlinePassed(
                f"no answer within the deadline of {question.deadline_s * 1000:.0f} ms"
            ) from None
        finally:
            del link.pending[submit.id]
            if not pending.answered.done() or pending.answered.cancelled():
                await self._send(link, Cancel(id=submit.id))

    async def _send(self, link: _Link, message: FromFrontEnd, *frames: bytes) -> None:
        await link.socket.send_multipart([encode(message), *frames])

    async def _ping(self, link: _Link) -> None:
        while True:
            await self._send(link, Ping())
            await asyncio.sleep(_PING_EVERY_S)

    async def _receive(self, link: _Link) -> None:
        while True:
            head, *frames = await link.socket.recv_multipart()
            link.heard = time.monotonic()
            try:
                message = decode_from_engine(head)
            except msgspec.DecodeError:
                log.exception("an engine sent what is no message")
                continue
            match message:
                case Status():
                    if link.status is not None and link.status.incarnation != message.incarnation:
                        link.outlook.lost()
                    link.status = message
                    await self._send_again(link, message)
                case Load():
                    link.outlook.tell(message, time.monotonic())
                case Answer():
                    pending = link.pending.get(message.id)
                    if pending is not None and not pending.answered.done():
                        logits = np.frombuffer(frames.pop(), "<f4") if pending.submit.logits else None
                        kept = tuple(np.frombuffer(frame, "<u2") for frame in frames)
                        pending.answered.set_result(Classified(message, kept, logits))
                case Refuse():
                    if (pending := link.pending.get(message.id)) is not None:
                        _fail(pending, _problem(message))

    async def _send_again(self, link: _Link, status: Status) -> None:
        """What an earlier incarnation of the engine took with it goes to this one."""
        if status.model is None:
            return
        now = time.monotonic()
        for pending in list(link.pending.values()):
            if pending.incarnation == status.incarnation:
                continue
            if pending.sent >= _ENGINES_AN_IMAGE_MAY_OUTLIVE:
                _fail(pending, EngineLost(f"{pending.sent} engines died while they had this image"))
                continue
            pending.incarnation = status.incarnation
            pending.sent += 1
            rest = msgspec.structs.replace(pending.submit, deadline_s=pending.given_up_at - now)
            await self._send(link, rest, pending.pixels)


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
        case "not-ready":
            return NotReady("the engine is still loading", retry_after_s=refusal.retry_after_s)
        case "engine-fault":
            return InternalFault("the engine failed on the batch with this image; see its log")


def _queue_full(retry_after_s: float | None) -> Problem:
    return QueueFull("the engine has too much work waiting", retry_after_s=retry_after_s or _RETRY_AFTER_S)


def _unmeetable(retry_after_s: float | None) -> Problem:
    if retry_after_s is None:
        return DeadlineUnmeetable("even an idle engine is predicted to take longer than the deadline")
    return DeadlineUnmeetable(
        "the images that wait are predicted to take until after the deadline", retry_after_s=retry_after_s
    )
