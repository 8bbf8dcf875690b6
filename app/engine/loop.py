"""The engine's main loop: ZeroMQ on one side, compute threads on the other, the scheduler between.

One thread owns the socket and the scheduler. Compute threads take batches and hand back results; nothing
is shared but two queues. What computes is behind `Backend`, so this module knows no torch.
"""

import logging
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from socket import socketpair
from typing import Protocol, get_args

import msgspec
import zmq

from app.engine.agreement import Agreement, Check
from app.engine.brown_out import CEILINGS, ratios
from app.engine.cost import CostModel, Measured, Work
from app.engine.fair_queue import Entry
from app.engine.load import load_of
from app.engine.memory import Budget
from app.engine.messages import (
    Answer,
    Begun,
    Cancel,
    FromEngine,
    Lowered,
    ModelInfo,
    Ping,
    RefusalReason,
    Refuse,
    Status,
    Submit,
    decode_from_front_end,
    encode,
)
from app.engine.parts import BackendBroken, Computed, compute_in_parts
from app.engine.scheduler import Batch, Limits, Scheduler, Taken
from app.engine.shares import shares, tokens
from app.processes import background
from app.processes.heartbeat import Beat, Heartbeat, Progress
from app.telemetry import metrics
from app.telemetry.rarely import Rarely
from models.schedule import UNPRUNED, Pruning, compute, keep_counts, macs, tokens_after

log = logging.getLogger(__name__)

_POLL_LIMIT_S = 0.5
_RETRY_AFTER_S = 1.0
_LOAD_EVERY_S = 0.05  # at most so often front ends are told of the load
_FRONT_END_SILENCE_S = 5.0  # one that pings no more is told nothing more
# Once a connection has ended, the engine looks for its front end: so long, for the socket may hear of the end
# later than its monitor, and so often.
_LOOK_FOR_GONE_S = 1.0
_LOOK_EVERY_S = 0.05

# What is asked of an image that is run for ourselves.
_CHECKED = Submit(id=0, pruning=UNPRUNED, margin=None, top_k=1, kept_patches=False, deadline_s=0)
_WORDS = {
    "engine-fault": "computing it alone failed, though a blank image can be computed",
    "no-number": "its scores are no finite numbers",
}

Key = tuple[bytes, int]


@dataclass(frozen=True, slots=True)
class Job:
    """One image on its way through the engine."""

    submit: Submit
    pixels: bytes
    lowered: Lowered | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What a backend finds for one job: see models.classifier.Prediction. ``kept``: uint16 per stage;
    ``logits``: float32. Both little-endian."""

    classes: list[int]
    scores: list[float]
    kept_counts: tuple[int, ...]
    kept: tuple[bytes, ...]
    keep_ratio: float
    compute: float
    runs: int
    logits: bytes | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is loaded and warmed up, and what the engine may do with it."""

    info: ModelInfo
    limits: Limits
    costs: CostModel


class Backend(Protocol):
    """What computes. Called from compute threads only."""

    def load(self) -> Loaded:
        """Load and warm up; an exception ends the engine."""

    def classify(self, jobs: Sequence[Job], threads: int) -> Sequence[Result]:
        """One result per job, in order."""

    def memory_bytes(self) -> int:
        """Memory in use on the device."""


@dataclass(slots=True)
class _FrontEnd:
    """When it was last heard, and the last Submit that came."""

    heard: float
    seen: int = 0


@dataclass(slots=True)
class _Done:
    batch: Batch
    jobs: list[tuple[Key, Job]]
    computed: Computed[Result]
    started: float
    ended: float


@dataclass(slots=True)
class _Checked:
    check: Check
    label: int | None  # None: the run failed


class Engine:
    """Answers front ends at ``address`` until `stop`; exits the process if the model cannot be loaded."""

    def __init__(
        self,
        name: str,
        address: str,
        backend: Backend,
        agreement: Agreement | None = None,
        heartbeat: Heartbeat | None = None,
        hang_after_s: float = 10.0,
    ) -> None:
        self.name = name
        self._address = address
        self._backend = backend
        self._heartbeat = heartbeat
        self._progress = Progress(hang_after_s)
        self._turns = 0
        self._incarnation = uuid.uuid4().hex
        self._context = zmq.Context()
        self._loaded: Loaded | None = None
        self._scheduler: Scheduler | None = None
        self._budget: Budget | None = None
        self._jobs: dict[Key, Job] = {}
        self._suspects: dict[Key, Entry] = {}  # in the order in which they came
        self._trial: Batch | None = None  # of a suspect
        self._front_ends: dict[bytes, _FrontEnd] = {}
        self._gone: set[bytes] = set()  # front ends that a message did not reach
        self._look_until = float("-inf")
        self._nonsense = Rarely()
        self._load_changed = False
        self._load_told = 0.0
        self._agreement = agreement or Agreement(0.0)
        self._checking = False
        self._work: SimpleQueue[tuple[Batch, list[tuple[Key, Job]]] | Check | None] = SimpleQueue()
        self._news: SimpleQueue[Loaded | BaseException | _Done | _Checked] = SimpleQueue()
        self._woken, self._waker = socketpair()
        self._stopping = False

    def __repr__(self) -> str:
        return (
            f"<Engine {self.name}: {len(self._front_ends)} front ends, {len(self._jobs)} images, "
            f"{len(self._suspects)} suspects, {self._scheduler}>"
        )

    def stop(self) -> None:
        """Finish what was accepted, then return from `run`. Safe in a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Serve. Raises what `Backend.load` raised."""
        socket = self._context.socket(zmq.ROUTER)
        # Never drop an answer because a front end reads slowly: the queue limit bounds what is under way.
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 2000)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # what is sent to a front end that has gone says so
        monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.bind(self._address)
        background.thread(self._load, "load", background.end_process)
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        poller.register(monitor, zmq.POLLIN)
        try:
            while not (self._stopping and self._idle):
                ready = dict(poller.poll(self._patience_ms()))
                if self._woken.fileno() in ready:
                    self._woken.recv(4096)
                while not self._news.empty():
                    self._handle_news(socket)
                if socket in ready:
                    self._receive_all(socket)
                if monitor in ready:
                    monitor.recv_multipart()
                    self._look_until = time.monotonic() + _LOOK_FOR_GONE_S
                self._forget_gone(socket)
                self._expire(socket)
                self._start_batches(socket)
                self._tell_load(socket)
                self._beat()
        finally:
            if self._loaded is not None:
                for _ in range(self._loaded.limits.streams):
                    self._work.put(None)
            socket.disable_monitor()
            monitor.close(0)
            socket.close()
            self._context.term()

    @property
    def loaded(self) -> bool:
        """Whether it has had a model that works."""
        return self._loaded is not None

    @property
    def _idle(self) -> bool:
        tried = not self._suspects and self._trial is None
        return (self._scheduler is None or self._scheduler.idle) and tried and not self._checking

    # --- front ends ---------------------------------------------------------------------------------
    def _receive_all(self, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                sender, *frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode_from_front_end(frames[0])
                pixels = frames[1] if isinstance(message, Submit) else b""
            except (msgspec.DecodeError, IndexError) as error:
                if (left_out := self._nonsense.due(time.monotonic())) is not None:
                    words = "a front end sent what is no message: %s; %d like it before were not told"
                    log.error(words, error, left_out)
                continue
            front_end = self._front_ends.setdefault(sender, _FrontEnd(0.0))
            front_end.heard = time.monotonic()
            match message:
                case Ping():
                    self._send(socket, sender, self._status())
                    self._load_changed = True
                case Cancel(id=image):
                    key = (sender, image)
                    if self._withdraw(key):
                        del self._jobs[key]
                case Submit():
                    self._submit(socket, sender, Job(message, pixels))

    def _submit(self, socket: zmq.Socket[bytes], sender: bytes, job: Job) -> None:
        key = (sender, job.submit.id)
        self._front_ends[sender].seen = max(self._front_ends[sender].seen, job.submit.id)
        self._load_changed = True
        if key in self._jobs:
            return  # a front end that saw us restart sent it again, and the first one had arrived after all
        if self._scheduler is None or self._loaded is None:
            self._refuse(socket, key, "not-ready")
            return
        info = self._loaded.info
        height, width = info.input.size
        if len(job.pixels) != height * width * 3:  # in a batch it would fail the images beside it, too
            log.error("a front end sent %d bytes of pixels, not %d", len(job.pixels), height * width * 3)
            self._refuse(socket, key, "engine-fault")
            return
        if job.submit.deadline_s <= 0:
            self._refuse(socket, key, "deadline-passed")
            return
        now = time.monotonic()
        entry = entry_of(key, job.submit, self._loaded, now)
        if job.submit.suspect:  # an engine accepted it before
            self._jobs[key], self._suspects[key] = job, entry
            return
        refusal = self._scheduler.submit(entry, now)
        if refusal is None:
            self._jobs[key] = job
        else:
            self._refuse(socket, key, refusal.reason, refusal.retry_after_s)

    def _expire(self, socket: zmq.Socket[bytes]) -> None:
        if self._scheduler is None:
            return
        for entry in self._scheduler.expire(time.monotonic()):
            key: Key = entry.key  # type: ignore[assignment]
            del self._jobs[key]
            self._refuse(socket, key, "deadline-passed")

    def _refuse(
        self,
        socket: zmq.Socket[bytes],
        key: Key,
        reason: RefusalReason,
        retry_after_s: float | None = _RETRY_AFTER_S,
    ) -> None:
        self._send(socket, key[0], Refuse(id=key[1], reason=reason, retry_after_s=retry_after_s))

    def _send(
        self, socket: zmq.Socket[bytes], to: bytes, message: FromEngine, frames: Sequence[bytes] = ()
    ) -> None:
        try:
            socket.send_multipart([to, encode(message), *frames])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._gone.add(to)

    def _forget_gone(self, socket: zmq.Socket[bytes]) -> None:
        """Compute nothing more for front ends that have gone. What is being computed is finished, for
        nobody."""
        if time.monotonic() < self._look_until:
            for sender in {*self._front_ends, *(owner for owner, _ in self._jobs)}:
                self._send(socket, sender, Begun([]))  # which says nothing, to whoever is there
        for sender in self._gone:
            dropped = [key for key in self._jobs if key[0] == sender and self._withdraw(key)]
            if self._front_ends.pop(sender, None) is not None or dropped:
                self._load_changed = True
                log.info("a front end has gone; %d of its images that waited are forgotten", len(dropped))
            for key in dropped:
                del self._jobs[key]
        self._gone.clear()

    def _withdraw(self, key: Key) -> bool:
        """Whether the image still waited, and does no more."""
        if self._suspects.pop(key, None) is not None:
            return True
        return self._scheduler is not None and self._scheduler.cancel(key)

    def _status(self) -> Status:
        return Status(
            incarnation=self._incarnation,
            model=None if self._loaded is None else self._loaded.info,
            waiting_tokens=0 if self._scheduler is None else self._scheduler.waiting_tokens,
        )

    def _tell_load(self, socket: zmq.Socket[bytes]) -> None:
        """Tell all front ends how long images would wait, if that has changed."""
        now = time.monotonic()
        if self._loaded is None or self._scheduler is None:
            return
        if not self._load_changed or now < self._load_told + _LOAD_EVERY_S:
            return
        self._load_changed, self._load_told = False, now
        info = self._loaded.info
        cheapest = compute(info.architecture, info.method.stages, CEILINGS[-1])
        load = load_of(self._scheduler, self._loaded.costs, cheapest, tokens(info, 1.0), now)
        for sender, front_end in list(self._front_ends.items()):
            if front_end.heard < now - _FRONT_END_SILENCE_S:
                del self._front_ends[sender]
            else:
                self._send(socket, sender, msgspec.structs.replace(load, seen=front_end.seen))

    def _beat(self) -> None:
        """Tell the supervisor that this thread goes on, and which batch has run longest."""
        self._turns += 1
        if self._heartbeat is not None:
            number, allowed_s = self._progress.oldest
            self._heartbeat.write(Beat(self._turns, number, allowed_s, self._loaded is not None))

    def _patience_ms(self) -> int:
        """How long to sleep at most: until something is due, and short enough to see a signal's flag."""
        now = time.monotonic()
        due = now + _POLL_LIMIT_S
        expiry = None if self._scheduler is None else self._scheduler.next_expiry()
        if expiry is not None:
            due = min(due, expiry)
        if self._load_changed and self._scheduler is not None:
            due = min(due, self._load_told + _LOAD_EVERY_S)
        if now < self._look_until:
            due = min(due, now + _LOOK_EVERY_S)
        return max(0, math.ceil((due - now) * 1000))

    # --- compute ------------------------------------------------------------------------------------
    def _start_batches(self, socket: zmq.Socket[bytes]) -> None:
        if self._scheduler is None:
            return
        now = time.monotonic()
        self._scheduler.relax(now)
        while (batch := self._next_batch(self._scheduler, now)) is not None:
            self._load_changed = True
            jobs = [self._at_its_ratio(taken) for taken in batch.taken]
            for sender in {sender for (sender, _), _ in jobs}:
                self._send(socket, sender, Begun([image for (owner, image), _ in jobs if owner == sender]))
            self._progress.began(id(batch), batch.tokens)
            self._work.put((batch, jobs))
        metrics.BROWN_OUT.labels(self.name).set(CEILINGS[self._scheduler.depth])
        metrics.QUEUE_SECONDS.labels(self.name).set(self._scheduler.waiting_s)
        metrics.QUEUE_IMAGES.labels(self.name).set(self._scheduler.waiting_images)
        metrics.QUEUE_TOKENS.labels(self.name).set(self._scheduler.waiting_tokens)
        if self._idle and not self._stopping and (check := self._agreement.take()) is not None:
            self._checking = True
            self._work.put(check)

    def _next_batch(self, scheduler: Scheduler, now: float) -> Batch | None:
        """A suspect has the engine to itself: whoever sent what beside it, nobody else dies with it."""
        if self._trial is None and not self._suspects:
            return scheduler.next_batch(now)
        if self._trial is not None or scheduler.running:
            return None
        entry = self._suspects.pop(next(iter(self._suspects)))
        taken = Taken(entry, scheduler.depth, by_deadline=False)
        self._trial = Batch((taken,), scheduler.limits.threads, now + entry.alone_s[scheduler.depth])
        return self._trial

    def _at_its_ratio(self, taken: Taken) -> tuple[Key, Job]:
        """The job, at the ratio that the scheduler's depth stands for."""
        key: Key = taken.entry.key  # type: ignore[assignment]
        job = self._jobs[key]
        submit = job.submit
        ratio = ratios(submit.pruning.keep_ratio, submit.min_keep_ratio)[taken.depth]
        if ratio == submit.pruning.keep_ratio:
            return key, job
        pruning = replace(submit.pruning, keep_ratio=ratio)
        lowered: Lowered = "deadline" if taken.by_deadline else "brown-out"
        submit = msgspec.structs.replace(submit, pruning=pruning, min_keep_ratio=None)
        return key, Job(submit, job.pixels, lowered)

    def _handle_news(self, socket: zmq.Socket[bytes]) -> None:
        match self._news.get():
            case Loaded() as loaded:
                self._loaded = loaded
                self._scheduler = Scheduler(loaded.limits)
                self._predict_from(self._scheduler, loaded)
                self._budget = Budget(loaded.limits)
                metrics.QUEUE_LIMIT.labels(self.name).set(loaded.limits.queue_images)
                for reason in get_args(Lowered):  # there from the start, so that the first shows as a rise
                    metrics.LOWERED.labels(reason)
                for fault in _WORDS:
                    metrics.IMAGES_FAILED.labels(fault)
                metrics.DEVICE_MEMORY.labels(self.name).set(self._backend.memory_bytes())
                for _ in range(loaded.limits.streams):
                    background.thread(self._stream, "stream", background.end_process)
                log.info("%s is ready on %s in %s", loaded.info.name, loaded.info.device, loaded.info.dtype)
            case BaseException() as error:
                raise error
            case _Done() as done:
                self._finish(socket, done)
            case _Checked(check, label):
                self._checking = False
                if label is not None:
                    self._agreement.found(check, label)

    def _finish(self, socket: zmq.Socket[bytes], done: _Done) -> None:
        assert self._scheduler is not None
        assert self._loaded is not None
        if done.batch is self._trial:
            self._trial = None
        else:
            self._scheduler.finished(done.batch)
        self._load_changed = True
        self._progress.ended(id(done.batch), done.batch.tokens, done.ended - done.started)
        for key, _ in done.jobs:
            del self._jobs[key]
        results = done.computed.results
        for entry, (key, job), result in zip(done.batch.entries, done.jobs, results, strict=True):
            if isinstance(result, str):
                self._refuse(socket, key, result)
                continue
            answer = Answer(
                id=job.submit.id,
                classes=result.classes,
                scores=result.scores,
                kept_counts=result.kept_counts,
                keep_ratio=result.keep_ratio,
                compute=result.compute,
                runs=result.runs,
                queue_s=done.started - entry.arrived,
                compute_s=done.ended - done.started,
                lowered=job.lowered,
            )
            logits = () if result.logits is None else (result.logits,)
            self._send(socket, key[0], answer, (*result.kept, *logits))
            self._agreement.answered(job.pixels, result.classes[0], result.keep_ratio)
        self._tell_of_faults(done)
        self._learn(done)
        self._measure(done)

    def _tell_of_faults(self, done: _Done) -> None:
        """In the log: which images were refused, and what was raised."""
        computed = done.computed
        for error in computed.errors:
            log.error("computing a batch of %d images failed:\n%s", len(done.jobs), error.rstrip())
        for (_, job), result in zip(done.jobs, computed.results, strict=True):
            if result in ("engine-fault", "no-number"):
                metrics.IMAGES_FAILED.labels(result).inc()
                log.error(
                    "one image of a batch of %d is refused (%s), the others are answered; it asked for %s",
                    *(len(done.jobs), _WORDS[result], job.submit.pruning),
                )

    def _predict_from(self, scheduler: Scheduler, loaded: Loaded) -> None:
        scheduler.overhead_s = loaded.costs.overhead_s(loaded.limits.stream_threads)
        scheduler.caution = loaded.costs.caution

    def _learn(self, done: _Done) -> None:
        """What the batch took goes into the predictions of those to come. Form smaller batches where it did
        not fit into memory."""
        assert self._loaded is not None
        assert self._scheduler is not None
        assert self._budget is not None
        computed = done.computed
        if computed.at_once == len(done.jobs):
            self._budget.fitted()
            results = [result for result in computed.results if not isinstance(result, str)]
            if len(results) < len(done.jobs):  # what they cost is not known of all
                return
            work = Work(len(results), sum(result.compute for result in results))
            measured = Measured(done.batch.threads, work, done.ended - done.started)
            metrics.PREDICTION_ERROR.observe(abs(self._loaded.costs.observe(measured)))
            self._predict_from(self._scheduler, self._loaded)
        elif computed.memory_was_short:
            self._budget.did_not_fit(done.batch.tokens, computed.at_once / len(done.jobs))
            metrics.OUT_OF_MEMORY.inc()
            log.warning(
                "a batch of %d images did not fit into memory; of at most %d tokens from now on",
                len(done.jobs),
                self._budget.tokens,
            )
        if self._budget.tokens != self._scheduler.limits.batch_tokens:
            self._scheduler.limits = replace(self._scheduler.limits, batch_tokens=self._budget.tokens)

    def _measure(self, done: _Done) -> None:
        assert self._loaded is not None
        info, limits = self._loaded.info, self._loaded.limits
        answered = [
            (job.submit.pruning, result)
            for (_, job), result in zip(done.jobs, done.computed.results, strict=True)
            if not isinstance(result, str)
        ]
        if not answered:
            return
        prunings, results = [pruning for pruning, _ in answered], [result for _, result in answered]
        lengths = {_lengths(info, pruning, result) for pruning, result in zip(prunings, results, strict=True)}
        metrics.BATCHES.labels("dense" if len(lengths) == 1 else "ragged").inc()
        metrics.BATCH_IMAGES.observe(len(results))
        metrics.BATCH_TOKENS.observe(done.batch.tokens)
        metrics.BATCH_FILL.observe(done.batch.tokens / limits.batch_tokens)
        metrics.BATCH_SECONDS.observe(done.ended - done.started)
        arch, stages = info.architecture, info.method.stages
        unpruned = macs(arch, stages, (arch.patches,) * len(stages.blocks))
        for pruning, result in zip(prunings, results, strict=True):
            metrics.APPLIED_KEEP_RATIO.observe(result.keep_ratio)
            kept = result.kept_counts[-1] if result.kept_counts else arch.patches
            metrics.PATCHES_KEPT.inc(kept)
            metrics.PATCHES_PRUNED.inc(arch.patches - kept)
            metrics.COMPUTE_UNPRUNED.inc(unpruned)
            first_run = result.compute
            if result.runs == 2:
                first_run = compute(arch, stages, pruning.keep_ratio, pruning.reducer)
                metrics.SECOND_RUNS.inc()
                metrics.COMPUTE_SECOND_RUNS.inc(unpruned * (result.compute - first_run))
            metrics.COMPUTE_SAVED.inc(unpruned * (1 - first_run))
        for _, job in done.jobs:
            if job.lowered is not None:
                metrics.LOWERED.labels(job.lowered).inc()
        metrics.DEVICE_MEMORY.labels(self.name).set(self._backend.memory_bytes())

    def _load(self) -> None:
        started = time.monotonic()
        try:
            loaded = self._backend.load()
            self._progress.first_s = _first_batch_s(loaded, time.monotonic() - started)
            self._report(loaded)
        except BaseException as error:
            self._report(error)

    def _stream(self) -> None:
        """A compute thread. One that dies takes the process with it."""
        while (work := self._work.get()) is not None:
            if isinstance(work, Check):
                self._report(self._checked(work))
                continue
            batch, jobs = work
            began = time.monotonic()
            try:
                compute = partial(self._backend.classify, threads=batch.threads)
                computed = compute_in_parts(compute, [job for _, job in jobs], self._blank())
            except BackendBroken as error:  # it ends the process: health must not stay green
                self._report(error)
                continue
            self._report(_Done(batch, jobs, computed, began, time.monotonic()))

    def _checked(self, check: Check) -> _Checked:
        """Run an answered image unpruned, on one thread: an image that comes meanwhile has the others."""
        try:
            (result,) = self._backend.classify([Job(_CHECKED, check.pixels)], 1)
        except Exception:
            log.exception("an image that was to be run again unpruned failed")
            return _Checked(check, None)
        return _Checked(check, result.classes[0])

    def _blank(self) -> Job:
        """An image that every sound backend can compute."""
        assert self._loaded is not None
        height, width = self._loaded.info.input.size
        return Job(_CHECKED, bytes(height * width * 3))

    def _report(self, news: Loaded | BaseException | _Done | _Checked) -> None:
        self._news.put(news)
        self._waker.send(b"!")


def _first_batch_s(loaded: Loaded, load_s: float) -> float:
    """What the first batch may be expected to take: a full one of unpruned images, or a quarter of the load,
    in which a few were computed."""
    info, limits = loaded.info, loaded.limits
    images = max(1, limits.batch_tokens // tokens(info, 1.0))
    return max(load_s / 4, loaded.costs.predict(Work(images, images), limits.stream_threads))


def entry_of(key: Key, submit: Submit, loaded: Loaded, now: float) -> Entry:
    """The image as the scheduler knows it, with what it is predicted to cost."""
    info, limits, costs = loaded.info, loaded.limits, loaded.costs
    at_depths = shares(info, submit.pruning, submit.margin, submit.min_keep_ratio)
    return Entry(
        key=key,
        tokens=tuple(tokens(info, share) for share in at_depths),
        seconds=tuple(costs.image_s(share, limits.stream_threads) for share in at_depths),
        alone_s=tuple(costs.predict(Work(1, share), limits.threads) for share in at_depths),
        arrived=now,
        deadline=now + submit.deadline_s,
        wait_limit_s=math.inf if submit.own_deadline else limits.queue_s,
        caller=submit.caller,
        priority=submit.priority,
    )


def _lengths(info: ModelInfo, pruning: Pruning, result: Result) -> tuple[int, ...]:
    """Tokens of an image after each stage of its first run."""
    ratio = pruning.keep_ratio if pruning.keep_mass is None else result.keep_ratio
    arch = info.architecture
    counts = keep_counts(arch.patches, ratio, len(info.method.stages.blocks))
    return tokens_after(arch, counts, pruning.reducer)
