"""What the tests of the dispatcher, its client and the worker share: a backend that fails on purpose, a
dispatcher and a worker in threads, a front end and a worker that say anything, and a dispatcher that says
anything."""

import asyncio
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
import numpy as np
import pytest

from app.dispatch.client import DispatchClient
from app.dispatch.dispatcher import Dispatcher
from app.dispatch.policy.agreement import Agreement
from app.dispatch.policy.batches import QueueLimits
from app.dispatch.server import Server
from app.messages import to_dispatcher, to_front_end, to_worker
from app.messages.capacity import Limits, Measured, Work
from app.messages.frames import FrameReader, framed
from app.messages.image import Ask, Prediction
from app.messages.model import ModelInfo
from app.messages.shared_memory import make_shared_memory
from app.messages.slot_map import SlotMap
from app.messages.slots import SlotReader, SlotWriter
from app.messages.to_dispatcher import Cancel, Done, FrontEnd, Held, Record, Submit, ToDispatcher, Worker
from app.messages.to_front_end import Answer, Load, Models, Outcomes, Refuse, ToFrontEnd, Workers
from app.messages.to_worker import Batch, ToWorker
from app.worker.backend import Job, Loaded
from app.worker.streams import OnAll
from app.worker.worker import WorkerLoop
from models.schedule import UNPRUNED, Pruning
from tests.app.fakes import LOGITS, MODEL, Asked, applied_ratio, cost, kept_patches

PATIENCE_S = 30.0  # the longest that a test waits for what should come at once
HEIGHT, WIDTH = MODEL.input.size
SLOTS = SlotMap(front_ends=3, per_front_end=12_000)
QUEUE = QueueLimits(images=100)
ONE_AT_A_TIME = Limits(batch_tokens=1, threads=1, streams=1)
ONE_STREAM = Limits(batch_tokens=1000, threads=1, streams=1)


class House:
    """The folder and the shared memory of one server. Front ends take ``SLOTS`` in turn."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "dispatcher"
        self.memory = make_shared_memory("trimvit-slots")
        self._front_ends = 0
        self.writers: list[SlotWriter] = []

    def slots(self, slot_map: SlotMap = SLOTS) -> SlotWriter:
        """The slots of the next front end."""
        self._front_ends += 1
        writer = SlotWriter(self.memory, slot_map, (self._front_ends - 1) % slot_map.front_ends)
        self.writers.append(writer)
        return writer

    def reader(self, pixel_bytes: int) -> Callable[[int], np.ndarray]:
        return SlotReader(self.memory, SLOTS, pixel_bytes).view

    @property
    def taken(self) -> int:
        """Slots that hold an image."""
        return sum(writer.taken for writer in self.writers)


@pytest.fixture
def house() -> Iterator[House]:
    """A folder of one's own; short, for a socket's path may have some hundred characters only."""
    with tempfile.TemporaryDirectory(prefix="trimvit-test-") as folder:
        yield House(Path(folder))


def question(number: int = 1, **changes: object) -> Asked:
    """A question whose picture is uniformly ``number``, by which the backend knows it again.

    ``changes`` may name fields of the pruning and of the Ask beside those of a Question.
    """
    ask, others = _asked(changes)
    return Asked(ask, pixels=picture(number), **{"deadline_s": PATIENCE_S, "model": MODEL.name, **others})  # type: ignore[arg-type]


def record(number: int = 1, slot: int | None = None, **changes: object) -> Record:
    """The same as a record, with the number as its id and, unless told otherwise, as its slot."""
    ask, others = _asked(changes)
    return Record(
        **{  # type: ignore[arg-type]
            "id": number,
            "slot": number if slot is None else slot,
            "size": MODEL.pixel_bytes,
            "ask": ask,
            "deadline_s": PATIENCE_S,
            "model": MODEL.name,
            **others,
        }
    )


def _asked(changes: dict[str, Any]) -> tuple[Ask, dict[str, Any]]:
    """What is asked, and the changes that are not of it."""
    others = dict(changes)
    of_pruning = {field.name: others.pop(field.name) for field in fields(Pruning) if field.name in others}
    of_ask = {name: others.pop(name) for name in Ask.__struct_fields__ if name in others}
    return Ask(Pruning(**of_pruning), **{"top_k": 3, **of_ask}), others


def picture(number: int = 1) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), number % 256, np.uint8)


def measured(limits: Limits, image_s: float = 0.001) -> tuple[Measured, ...]:
    """What a warm-up says where an unpruned image takes so long, on any number of threads."""
    return tuple(
        Measured(threads, Work(images, images), images * image_s)
        for threads in {limits.threads, limits.stream_threads}
        for images in (1, 2, 5)
    )


def hello(name: str = "worker-0", limits: Limits = ONE_STREAM, **changes: Any) -> Worker:
    """What a worker says first."""
    held = Held(changes.pop("info", MODEL), changes.pop("measured", measured(limits)))
    return Worker(**{"name": name, "models": (held,), "limits": limits, **changes})


def found(asked: Ask, first: int, *, runs: int = 1, finite: bool = True) -> Prediction:
    """A result whose first label is the number's."""
    ratio = applied_ratio(asked.pruning if runs == 1 else UNPRUNED)
    stages = kept_patches(ratio)
    return Prediction(
        classes=[(first + place) % 11 for place in range(asked.top_k)],
        scores=[0.5 ** (place + 1) if finite else float("nan") for place in range(asked.top_k)],
        kept_counts=tuple(len(stage) for stage in stages),
        keep_ratio=ratio,
        compute=cost(asked.pruning, runs),
        runs=runs,
        kept=tuple(np.array(stage, "<u2").tobytes() for stage in stages) if asked.kept_patches else (),
        logits=np.array(LOGITS, "<f4").tobytes() if asked.logits else None,
    )


@dataclass
class FakeBackend:
    """Answers by rule; waits, fails or miscounts where it is told to.

    Pictures are known by the value of their pixels: its label comes first, ``poisoned`` ones fail, a cascade
    runs ``unsure`` ones again, and unpruned, ``swayed`` ones get the next label; ``speechless`` ones get
    scores that are no numbers. A ``broken`` one fails for every image, as does one that ``raises``.
    """

    limits: Limits = ONE_STREAM
    model: ModelInfo = MODEL
    load_error: BaseException | None = None
    poisoned: set[int] = field(default_factory=set)
    most_at_once: int = 1_000_000  # images that fit into memory
    unsure: set[int] = field(default_factory=set)
    swayed: set[int] = field(default_factory=set)
    speechless: set[int] = field(default_factory=set)
    broken: bool = False
    raises: Exception | None = None
    miscounts: int = 1_000_000  # batches of so many images or more get a result too few
    image_s: float = 0.001  # what the warm-up measured
    together: threading.Barrier | None = None  # batches that begin must meet here
    may_load: threading.Event = field(default_factory=threading.Event)
    may_answer: threading.Event = field(default_factory=threading.Event)
    begun: "SimpleQueue[list[int]]" = field(default_factory=SimpleQueue)
    seen: list[tuple[Ask, int]] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    loads: int = 0

    def __post_init__(self) -> None:
        self.may_load.set()
        self.may_answer.set()

    def load(self, on_all: OnAll) -> Loaded:
        assert self.may_load.wait(PATIENCE_S)
        if self.load_error is not None:
            raise self.load_error
        self.loads += 1
        return Loaded(self.model, self.limits, measured(self.limits, self.image_s))

    def classify(self, jobs: Sequence[Job], threads: int) -> Sequence[Prediction]:
        if self.together is not None:
            self.together.wait(PATIENCE_S)
        numbers = [int(job.pixels[0]) for job in jobs]
        self.seen += [(job.ask, number) for job, number in zip(jobs, numbers, strict=True)]
        self.threads.append(threads)
        self.begun.put(numbers)
        assert self.may_answer.wait(PATIENCE_S)
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self.raises is not None:
            raise self.raises
        if self.poisoned & set(numbers):
            raise RuntimeError("poisoned")
        if len(jobs) > self.most_at_once:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: not enough memory: "
                "you tried to allocate 4294967296 bytes."
            )
        results = [self.result(job) for job in jobs]
        return results[1:] if len(jobs) >= self.miscounts else results

    def memory_bytes(self) -> int:
        return 1234

    def next_batch(self) -> list[int]:
        """The pictures of the next batch that is begun; waits for it."""
        return self.begun.get(timeout=PATIENCE_S)

    @property
    def numbers(self) -> list[int]:
        """Pictures that were given to compute, in order."""
        return [number for _, number in self.seen]

    def result(self, job: Job) -> Prediction:
        number = int(job.pixels[0])
        runs = 2 if job.ask.margin is not None and number in self.unsure else 1
        swayed = number in self.swayed and job.ask.pruning == UNPRUNED
        return found(job.ask, number + swayed, runs=runs, finite=number not in self.speechless)


@dataclass
class Running:
    """Something that runs in a thread of its own until it is stopped."""

    thread: threading.Thread
    failure: BaseException | None = None

    def ended(self) -> bool:
        self.thread.join(PATIENCE_S)
        return not self.thread.is_alive()


@contextmanager
def in_a_thread(run: Callable[[], None], stop: Callable[[], None], name: str) -> Iterator[Running]:
    """What `run` raised is raised when the block ends."""

    def kept() -> None:
        try:
            run()
        except BaseException as error:
            running.failure = error

    running = Running(threading.Thread(target=kept, name=name))
    running.thread.start()
    try:
        yield running
    finally:
        stop()
        assert running.ended(), f"{name} did not stop"
    if running.failure is not None:
        raise running.failure


@dataclass
class RunningDispatcher:
    dispatcher: Dispatcher
    server: Server
    running: Running


@contextmanager
def running_dispatcher(
    house: House,
    limits: QueueLimits = QUEUE,
    agreement: Agreement | None = None,
    patience_s: float = PATIENCE_S,
    **options: Any,
) -> Iterator[RunningDispatcher]:
    """A dispatcher until the block ends."""
    dispatcher = Dispatcher(limits, SLOTS.count, patience_s, agreement, **options)
    server = Server(dispatcher, house.path)
    with in_a_thread(server.run, server.stop, "dispatcher") as running:
        yield RunningDispatcher(dispatcher, server, running)


@contextmanager
def running_worker(
    house: House, backend: FakeBackend | None = None, name: str = "worker-0", *others: FakeBackend
) -> Iterator[tuple[WorkerLoop, Running]]:
    """A worker until the block ends, with a backend for each of its models."""
    backends = [backend or FakeBackend(), *others]
    worker = WorkerLoop(name, house.path, backends, house.reader)

    def stop() -> None:
        for each in backends:
            each.may_load.set()
            each.may_answer.set()
        worker.stop()

    with in_a_thread(worker.run, stop, name) as running:
        yield worker, running


@contextmanager
def served(
    house: House,
    *backends: FakeBackend,
    limits: QueueLimits = QUEUE,
    agreement: Agreement | None = None,
    patience_s: float = PATIENCE_S,
) -> Iterator[Dispatcher]:
    """A dispatcher and a worker for each backend."""
    with ExitStack() as stack:
        running = stack.enter_context(running_dispatcher(house, limits, agreement, patience_s))
        for number, backend in enumerate(backends):
            stack.enter_context(running_worker(house, backend, f"worker-{number}"))
        try:
            yield running.dispatcher
        finally:
            for backend in backends:
                backend.may_answer.set()
            # Before the workers: what was accepted is to be computed.
            running.server.stop()
            assert running.running.ended()


class _Stream:
    """One blocking connection, in frames."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(PATIENCE_S)
        self._frames = FrameReader()
        self._come: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.socket.sendall(framed(data))

    def receive(self) -> bytes:
        """The next message. Raises EOFError where the other side has hung up."""
        while not self._come:
            data = self.socket.recv(2**18)
            if not data:
                raise EOFError
            self._come += map(bytes, self._frames.feed(data))
        return self._come.pop(0)

    def close(self) -> None:
        self.socket.close()


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionError):
            assert time.monotonic() < until, "nobody listens"
            time.sleep(0.005)
        else:
            return connection


class FrontEndPeer:
    """A front end that sends what it is told to, message or not."""

    def __init__(
        self,
        house: House,
        *,
        introduced: bool = True,
        slot_map: SlotMap = SLOTS,
        shape: tuple[int, ...] = (HEIGHT, WIDTH, 3),
    ) -> None:
        self._stream = _Stream(_connect(house.path))
        self._shape = shape
        self.slots = house.slots(slot_map)
        self.workers: Workers | None = None
        self.load: Load | None = None
        self.models: Models | None = None
        self._outcomes: list[Answer | Refuse] = []
        if introduced:
            self.say(FrontEnd(0))

    def __enter__(self) -> "FrontEndPeer":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def send(self, data: bytes) -> None:
        self._stream.send(data)

    def send_raw(self, data: bytes) -> None:
        self._stream.socket.sendall(data)

    def say(self, message: ToDispatcher) -> None:
        self.send(to_dispatcher.encode(message))

    def submit(self, number: int = 1, picture_of: int | None = None, **changes: object) -> None:
        """Ask for one image, with its pixels in a slot."""
        slot = self.slots.take()
        assert slot is not None
        pixels = np.full(self._shape, (number if picture_of is None else picture_of) % 256, np.uint8)
        self.slots.write(slot, pixels)
        model = MODEL.name if self.models is None else self.models.infos[0].name
        self.say(Submit([record(number, slot, **{"size": pixels.nbytes, "model": model, **changes})]))

    def cancel(self, *numbers: int) -> None:
        self.say(Cancel(list(numbers)))

    def hear(self) -> Answer | Refuse:
        """What became of the next image; what else is told is kept beside it."""
        while not self._outcomes:
            self._take(to_front_end.decode(self._stream.receive()))
        return self._outcomes.pop(0)

    def _take(self, message: ToFrontEnd) -> None:
        match message:
            case Outcomes(answers, refusals):
                self._outcomes += [*answers, *refusals]
            case Workers():
                self.workers = message
            case Load():
                self.load = message
            case Models():
                self.models = message

    def take_next(self) -> None:
        """Wait for one message."""
        self._take(to_front_end.decode(self._stream.receive()))

    def wait_until_ready(self, workers: int = 1) -> None:
        while self.workers is None or sum(worker.ready for worker in self.workers.workers) < workers:
            self.take_next()

    def hung_up(self) -> bool:
        """Whether the dispatcher ends the connection."""
        try:
            while True:
                self._stream.receive()
        except (EOFError, ConnectionError):
            return True


class WorkerPeer:
    """A worker that says what it is told to."""

    def __init__(self, house: House, first: Worker | None = None) -> None:
        self._stream = _Stream(_connect(house.path))
        self.say(first or hello())

    def __enter__(self) -> "WorkerPeer":
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def say(self, message: ToDispatcher) -> None:
        self._stream.send(to_dispatcher.encode(message))

    def next(self) -> ToWorker:
        return to_worker.decode(self._stream.receive())

    def next_batch(self) -> Batch:
        message = self.next()
        assert isinstance(message, Batch), message
        return message

    def answer(self, batch: Batch, *firsts: int) -> None:
        """With these first labels, or the images' slots."""
        results = [
            found(order.ask, firsts[place] if firsts else order.slot)
            for place, order in enumerate(batch.images)
        ]
        self.say(Done(batch.number, results, 0.001, len(results)))

    def die(self) -> None:
        self._stream.close()


class ScriptedDispatcher:
    """A dispatcher that says what it is told to, to the one front end that connects."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.heard: list[ToDispatcher] = []
        self.records: asyncio.Queue[Record] = asyncio.Queue()

    def say(self, message: ToFrontEnd) -> None:
        self.send(to_front_end.encode(message))

    def send(self, data: bytes) -> None:
        self._writer.write(framed(data))

    def answer(self, asked: Record, **changes: object) -> None:
        self.say(Outcomes([answer_to(asked, **changes)], []))

    async def next_record(self) -> Record:
        async with asyncio.timeout(PATIENCE_S):
            return await self.records.get()

    async def listen(self, reader: asyncio.StreamReader) -> None:
        frames = FrameReader()
        while data := await reader.read(2**16):
            for frame in frames.feed(data):
                message = to_dispatcher.decode(frame)
                self.heard.append(message)
                if isinstance(message, Submit):
                    for one in message.records:
                        self.records.put_nowait(one)


def answer_to(asked: Record, **changes: object) -> Answer:
    """``changes`` may name fields of the Answer and of its Prediction."""
    prediction = Prediction([7], [0.75], kept_counts=(15, 15), keep_ratio=1.0, compute=1.0, runs=1)
    of_answer = {name: changes.pop(name) for name in Answer.__struct_fields__ if name in changes}
    prediction = msgspec.structs.replace(prediction, **changes)
    return msgspec.structs.replace(Answer(asked.id, prediction, queue_s=0.25, compute_s=0.5), **of_answer)


@asynccontextmanager
async def scripted_dispatcher(house: House) -> AsyncIterator["asyncio.Queue[ScriptedDispatcher]"]:
    """One for every connection, in a queue. When the block ends they are dead."""
    house.path.unlink(missing_ok=True)
    made: asyncio.Queue[ScriptedDispatcher] = asyncio.Queue()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        one = ScriptedDispatcher(writer)
        made.put_nowait(one)
        await one.listen(reader)

    server = await asyncio.start_unix_server(serve, house.path)
    try:
        yield made
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


@asynccontextmanager
async def connected(house: House, **options: Any) -> AsyncIterator[DispatchClient]:
    """A client, started and closed. It has freed all its slots at the end."""
    slots = house.slots()
    client = DispatchClient(house.path, slots, **options)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def ready_client(house: House, **options: Any) -> AsyncIterator[DispatchClient]:
    """A client for which a worker is ready."""
    async with connected(house, **options) as client:
        await until(lambda: client.model is not None, "a worker to be ready")
        yield client


async def ask(client: DispatchClient, asked: Asked) -> Answer:
    """The answer to the question, with its pixels in a slot meanwhile."""
    with client.slot() as slot:
        slot.write(asked.pixels)
        return await client.classify(asked, slot)


def asking(client: DispatchClient, asked: Asked) -> "asyncio.Task[Answer]":
    return asyncio.create_task(ask(client, asked))


async def ask_behind(
    client: DispatchClient, backend: FakeBackend, first: Asked, *others: Asked
) -> "list[asyncio.Task[Answer]]":
    """Ask all; the others wait while ``first`` is being computed, which a closed ``may_answer`` makes
    last."""
    backend.may_answer.clear()
    asked = [asking(client, first)]
    assert await begun(backend) == [first.pixels[0, 0, 0]]
    asked += [asking(client, other) for other in others]
    return asked


async def begun(backend: FakeBackend) -> list[int]:
    """The pictures of the next batch that the backend begins, without blocking the event loop."""
    return await asyncio.to_thread(backend.next_batch)


async def until(condition: Callable[[], bool], what: str) -> None:
    """Return when the condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """The same without an event loop."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.002)


def noise(value: object) -> bytes:
    """msgpack that is no message."""
    return msgspec.msgpack.encode(value)
