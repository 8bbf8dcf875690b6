"""A front end's client of the dispatcher.

The pixels of an image stay in one of the front end's slots from decoding to the answer. When the dispatcher
is replaced, all open records are sent to the new one: the pixels are still in their slots.

Above 300 lines: every way in which an image ends changes the table of pending images. What does not use it is
in link.py, readiness.py, front_end_models.py, asked_changes.py, refusals.py, answers.py, questions.py and
slot.py.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from app.dispatch.answers import check_prediction
from app.dispatch.asked_changes import AskedChanges
from app.dispatch.front_end_models import FrontEndModels
from app.dispatch.link import Link
from app.dispatch.policy.load_page import LoadPage
from app.dispatch.policy.shares import shares
from app.dispatch.policy.smoothed import Smoothed
from app.dispatch.questions import Expected as Expected
from app.dispatch.questions import Question as Question
from app.dispatch.questions import record_of
from app.dispatch.readiness import Readiness
from app.dispatch.refusals import problem_of
from app.dispatch.slot import Slot as Slot
from app.errors import DeadlinePassed, InternalFault, NotReady, Problem
from app.messages import to_front_end
from app.messages.model import ModelInfo
from app.messages.repository import ModelEntry
from app.messages.slots import SlotWriter
from app.messages.to_dispatcher import Cancel, FrontEnd, ModelLeft, Record, Submit, ToDispatcher
from app.messages.to_front_end import (
    Answer,
    Load,
    ModelChanged,
    Models,
    Outcomes,
    Refuse,
    Repository,
    Workers,
)
from app.processes import background
from app.telemetry.logs import request_id
from app.telemetry.rarely import Rarely

log = logging.getLogger(__name__)

_RETRY_AFTER_S = 1.0
_LOOK_EVERY_S = 0.25


@dataclass(slots=True)
class _Pending:
    """An open image. ``model``: the requested model as it was then; None while none was known. ``least`` and
    ``most``: its minimum and maximum cost, in unpruned images of the default model. ``sent``: whether a
    dispatcher has it."""

    record: Record
    model: ModelInfo | None
    answered: asyncio.Future[Answer]
    began: float
    given_up_at: float
    request_id: str | None
    least: float
    most: float
    sent: bool = False


@dataclass(frozen=True, slots=True)
class _Expecting:
    """Counts an image with this cost as being decoded."""

    load: LoadPage
    expected: Expected
    compute: float

    def __enter__(self) -> None:
        self.load.decoding(self.expected.caller, self.expected.priority, self.compute)

    def __exit__(self, *_: object) -> None:
        self.load.decoded(self.expected.caller, self.expected.priority, self.compute)


class DispatchClient:
    """Sends images to the dispatcher at ``path``, with pixels in these ``slots``, as the front end with that
    ``index``. ``workers``: the number of workers.

    While no worker is ready, up to ``most_waiting`` requests wait up to ``patience_s`` for one, unless the
    supervisor's ``reports`` say that none will start soon.
    """

    def __init__(
        self,
        path: Path,
        slots: SlotWriter,
        *,
        index: int = 0,
        workers: int = 1,
        reports: Path | None = None,
        patience_s: float = 30.0,
        most_waiting: int = 1024,
    ) -> None:
        self._slots = slots
        self._index = index
        self._patience_s = patience_s
        self._readiness = Readiness(workers, reports, patience_s, most_waiting)
        self._link = Link(path, self._connected, self._heard, self._lost)
        self._tasks: list[asyncio.Task[None]] = []
        self._pending: dict[int, _Pending] = {}
        self._records: list[Record] = []  # to send at the end of this turn of the event loop
        self._withdrawn: list[int] = []
        self._closing = False
        self._last_id = 0
        self._load = LoadPage()
        self._models = FrontEndModels(lambda name: self._link.send(ModelLeft(name)))
        self._changes = AskedChanges(self._send_if_up)
        self._way = Smoothed()
        self._invalid_messages = Rarely()

    def __repr__(self) -> str:
        workers = self._readiness.workers
        ready = sum(worker.ready for worker in workers)
        return f"<DispatchClient {ready} of {len(workers)} workers ready, {len(self._pending)} images>"

    async def start(self) -> None:
        """Connect. The dispatcher may start later."""
        self._tasks = [
            background.kept(self._link.keep_up, "link to the dispatcher"),
            background.kept(self._look_for_trouble, "reports of workers"),
        ]

    async def close(self) -> None:
        """Disconnect. Open images fail with NotReady."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pending in self._pending.values():
            _fail(pending, NotReady("the server is shutting down", retry_after_s=_RETRY_AFTER_S))
        self._changes.lost("the server is shutting down")

    @property
    def model(self) -> ModelInfo | None:
        """The default model. None while no worker is ready or the dispatcher does not respond."""
        return self._readiness.model

    @property
    def last_model(self) -> ModelInfo | None:
        """The default model that a worker was last ready to serve, even if it is not ready now. None before
        the first."""
        return self._readiness.last_model

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        """The models that the workers served last, by name, the default model first."""
        return self._readiness.models

    def using(self, model: ModelInfo) -> AbstractContextManager[None]:
        """A context manager for a request for that model, which is kept meanwhile. Raises NotFound if the
        model is not served any more."""
        return self._models.using(model)

    @property
    def repository(self) -> Sequence[ModelEntry]:
        """The models that are served or may be loaded while serving. Empty if that is not enabled."""
        return self._changes.models

    async def change_model(self, name: str, *, load: bool) -> None:
        """Load or unload a model of the repository: see `AskedChanges.ask`."""
        await self._changes.ask(name, load=load)

    @property
    def load(self) -> Load | None:
        """The dispatcher's last message about its queue and predictions. None before the first."""
        return self._load.load

    @property
    def work(self) -> float:
        """This front end's images that wait or are computed, in unpruned images of the default model: each
        counts as its share of compute."""
        return sum(pending.most for pending in self._pending.values())

    @property
    def workers(self) -> list[dict[str, object]]:
        """The state of each worker, for the operator."""
        return self._readiness.states

    def refusal(self, expected: Expected) -> Problem | None:
        """The refusal that the dispatcher is certain to send for such an image. None if it may accept it."""
        if self.model is None:
            return None
        refusal = self._load.refusal(
            expected.caller,
            expected.priority,
            expected.share,
            self._for_dispatcher(expected.deadline_s),
            expected.wait_limit_s,
            time.monotonic(),
            expected.model,
            self._models.weight(expected.model),
        )
        return None if refusal is None else problem_of(refusal.reason, refusal.retry_after_s)

    def expecting(self, expected: Expected) -> AbstractContextManager[None]:
        """A context manager around the decoding of an image. Raises QueueFull or DeadlineUnmeetable if the
        dispatcher is certain to refuse the image, so that it is not decoded for nothing."""
        if (refusal := self.refusal(expected)) is not None:
            raise refusal
        return _Expecting(self._load, expected, expected.share * self._models.weight(expected.model))

    @property
    def trouble(self) -> str | None:
        """Why no worker is ready, if the supervisor has reported that none will be ready soon."""
        found = self._readiness.trouble
        return None if found is None or self.model is not None else found[0]

    async def wait_until_ready(self, within_s: float) -> ModelInfo:
        """The default model, as soon as a worker is ready. Raises NotReady if none is ready in time or none
        is expected, and QueueFull if too many requests are already waiting."""
        return await self._readiness.wait(within_s)

    def slot(self) -> AbstractContextManager[Slot]:
        """A context manager from the decoding of an image to its answer: a slot for its pixels."""
        return Slot(self._slots)

    async def classify(self, question: Question, slot: Slot) -> Answer:
        """The answer for the image in that slot. Raises NotReady, QueueFull, DeadlineUnmeetable,
        DeadlinePassed, OutOfMemory, WorkerLost or InternalFault. Cancelling this withdraws the image."""
        if self._readiness.trouble is not None and self.model is None:
            raise self._readiness.not_ready()
        pending = self._begin(question, slot)
        # Cheaper than asyncio.timeout, which must be able to interrupt any await.
        timer = asyncio.get_running_loop().call_later(
            question.deadline_s, self._give_up, pending, partial(_too_late, question.deadline_s)
        )
        try:
            answer = await pending.answered
            self._way.observe(_way_s(answer, time.monotonic() - pending.began))
            return answer
        finally:
            timer.cancel()
            del self._pending[pending.record.id]
            if not pending.answered.done() or pending.answered.cancelled():
                self._withdraw(pending.record.id)

    def _begin(self, question: Question, slot: Slot) -> _Pending:
        self._last_id += 1
        record = record_of(question, self._last_id, slot, self._for_dispatcher(question.deadline_s))
        most = least = 1.0
        if (model := self._models.named(record.model)) is not None:
            weight, at_depths = self._models.weight(record.model), shares(model, record.ask)
            most, least = at_depths[0] * weight, at_depths[-1] * weight
        now = time.monotonic()
        answered = asyncio.get_running_loop().create_future()
        given_up_at = now + question.deadline_s
        pending = _Pending(record, model, answered, now, given_up_at, request_id.get(), least, most)
        self._pending[record.id] = pending
        self._send(pending, record)
        return pending

    def _for_dispatcher(self, deadline_s: float) -> float:
        """The part of a deadline that is left for the dispatcher, according to the latest round-trip
        times."""
        return deadline_s - self._way.allowance_s(deadline_s)

    # --- to the dispatcher --------------------------------------------------------------------------
    def _send(self, pending: _Pending, record: Record) -> None:
        """Send at the end of this turn of the event loop, together with everything else from it."""
        if not self._link.is_up:
            return  # it is sent when the connection is up
        pending.sent = True
        self._load.sent(record.id, record.caller, record.priority, pending.least)
        self._send_soon()
        self._records.append(record)

    def _send_if_up(self, message: ToDispatcher) -> bool:
        self._link.send(message)
        return self._link.is_up

    def _withdraw(self, number: int) -> None:
        if self._link.is_up:
            self._send_soon()
            self._withdrawn.append(number)

    def _send_soon(self) -> None:
        if not self._records and not self._withdrawn:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        records, self._records = self._records, []
        withdrawn, self._withdrawn = self._withdrawn, []
        if records:
            self._link.send(Submit(records))
        if withdrawn:
            self._link.send(Cancel(withdrawn))

    def _connected(self) -> None:
        """Send all open records to a new dispatcher."""
        self._link.send(FrontEnd(self._index))
        now = time.monotonic()
        for pending in self._pending.values():
            if not pending.answered.done():
                left_s = self._for_dispatcher(max(0.0, pending.given_up_at - now))
                again = msgspec.structs.replace(pending.record, deadline_s=left_s, again=pending.sent)
                self._send(pending, again)
        self._flush()

    def _lost(self) -> None:
        self._records, self._withdrawn = [], []
        self._readiness.lost()
        self._load.lost()
        self._changes.lost("the dispatcher exited during the change; list the models and try again")
        if not self._closing:
            log.warning("lost the connection to the dispatcher with %d images pending", len(self._pending))

    # --- from the dispatcher ------------------------------------------------------------------------
    def _heard(self, frame: bytes | memoryview) -> None:
        now = self._readiness.heard_at = time.monotonic()
        try:
            message = to_front_end.decode(frame)
        except msgspec.DecodeError as error:
            self._log_invalid("invalid message from the dispatcher", error)
            return
        match message:
            case Outcomes(answers, refusals):
                for answer in answers:
                    self._answer(answer)
                for refusal in refusals:
                    self._refuse(refusal)
            case Load():
                self._load.tell(message, now)
            case Workers(workers):
                self._readiness.told(workers)
            case Models(infos):
                self._models.told(infos)
                self._readiness.models = self._models.now
            case Repository(models):
                self._changes.models = tuple(models)
            case ModelChanged():
                self._changes.answered(message)

    def _answer(self, answer: Answer) -> None:
        pending = self._pending.get(answer.id)
        if pending is None or pending.answered.done():
            return
        model = pending.model or self._models.named(pending.record.model)
        try:
            if model is None:
                raise ValueError(f"the model {pending.record.model!r} is not loaded")
            check_prediction(answer.prediction, pending.record.ask, len(model.labels), model.features)
        except ValueError as error:
            self._log_invalid("invalid answer from a worker", error)
            _fail(pending, InternalFault("the worker's answer for this image was invalid"))
        else:
            pending.answered.set_result(answer)

    def _refuse(self, refusal: Refuse) -> None:
        if (pending := self._pending.get(refusal.id)) is not None:
            if refusal.reason == "not-ready":
                problem: Problem = self._readiness.not_ready()
            else:
                problem = problem_of(refusal.reason, refusal.retry_after_s)
            if refusal.reason == "worker-lost":
                log.error("image refused: %s", problem, extra={"request_id": pending.request_id})
            _fail(pending, problem)

    def _log_invalid(self, what: str, error: Exception) -> None:
        if (left_out := self._invalid_messages.due(time.monotonic())) is not None:
            log.error("%s: %s (%d similar messages suppressed)", what, error, left_out)

    # --- while no worker is ready -------------------------------------------------------------------
    async def _look_for_trouble(self) -> None:
        """Give up images that will not be computed soon: because the supervisor reports it, or because there
        has been no dispatcher for as long as they may wait."""
        while True:
            self._readiness.look_for_trouble()
            now = time.monotonic()
            for pending in list(self._pending.values()):
                impatient = not self._link.is_up and now > pending.began + self._patience_s
                if self._readiness.trouble is not None or impatient:
                    self._give_up(pending, self._readiness.not_ready)
            await asyncio.sleep(_LOOK_EVERY_S)

    def _give_up(self, pending: _Pending, why: Callable[[], Problem]) -> None:
        if not pending.answered.done():
            _fail(pending, why())
            self._withdraw(pending.record.id)


def _way_s(answer: Answer, whole_s: float) -> float:
    """The part of the time until an answer that was spent neither in the queue nor in computing: in transit,
    and until either side handled it."""
    return max(0.0, whole_s - answer.queue_s - answer.compute_s)


def _too_late(deadline_s: float) -> DeadlinePassed:
    return DeadlinePassed(
        f"the image was not computed within the {deadline_s * 1000:.0f} ms that were left of the deadline "
        "after decoding; allow more time (deadline_ms) or a lower keep ratio"
    )


def _fail(pending: _Pending, problem: Problem) -> None:
    if not pending.answered.done():
        pending.answered.set_exception(problem)
