"""What the tests of the engine's loop and of its client share: a backend that fails on purpose, an engine in
a thread, a front end that says anything, and an engine that says anything."""

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
import zmq.asyncio

from app.engine.agreement import Agreement
from app.engine.client import Classified, EngineClient, Question
from app.engine.cost import CostModel, Measured, Work
from app.engine.loop import Engine, Job, Loaded, Result
from app.engine.messages import (
    Begun,
    FromEngine,
    FromFrontEnd,
    Load,
    Ping,
    Status,
    Submit,
    decode_from_engine,
    decode_from_front_end,
    encode,
)
from app.engine.scheduler import Limits
from models.schedule import UNPRUNED, Pruning
from tests.app.fakes import LOGITS, MODEL, applied_ratio, cost, kept_patches

PATIENCE_S = 30.0  # the longest that a test waits for what should come at once
HEIGHT, WIDTH = MODEL.input.size
ONE_AT_A_TIME = Limits(batch_tokens=1, queue_images=100, threads=1, streams=1)
ONE_STREAM = Limits(batch_tokens=1000, queue_images=100, threads=1, streams=1)


@pytest.fixture
def address() -> Iterator[str]:
    """An ipc address of one's own; short, for a socket's path may have some hundred characters only."""
    folder = tempfile.mkdtemp(prefix="trimvit-test-")
    yield f"ipc://{folder}/engine"
    shutil.rmtree(folder)


def question(number: int = 1, **changes: object) -> Question:
    """A question whose picture is uniformly ``number``, by which the backend knows it again.

    ``changes`` may name fields of the pruning beside those of a Question.
    """
    return Question(pixels=np.full((HEIGHT, WIDTH, 3), number, np.uint8), **_asked(changes))  # type: ignore[arg-type]


def submit(number: int = 1, **changes: object) -> Submit:
    """The same as a message, with the number as its id."""
    return Submit(id=number, **_asked(changes))  # type: ignore[arg-type]


def _asked(changes: dict[str, object]) -> dict[str, object]:
    names = {field.name for field in fields(Pruning)}
    return {
        "pruning": Pruning(**{name: value for name, value in changes.items() if name in names}),  # type: ignore[arg-type]
        "margin": None,
        "top_k": 3,
        "kept_patches": False,
        "deadline_s": PATIENCE_S,
        **{name: value for name, value in changes.items() if name not in names},
    }


def costs(limits: Limits, image_s: float = 0.001) -> CostModel:
    """A cost model by which an unpruned image takes so long, on any number of threads."""
    return CostModel.learned(
        Measured(threads, Work(images, images), images * image_s)
        for threads in {limits.threads, limits.stream_threads}
        for images in (1, 2, 5)
    )


def pixels(number: int = 1) -> bytes:
    return bytes([number]) * (HEIGHT * WIDTH * 3)


@dataclass
class FakeBackend:
    """Answers by rule; waits, fails or miscounts where it is told to.

    Pictures are known by the value of their pixels: its label comes first, ``poisoned`` ones fail, a cascade
    runs ``unsure`` ones again, and unpruned, ``swayed`` ones get the next label; ``speechless`` ones get
    scores that are no numbers. A ``broken`` one fails for every image.
    """

    limits: Limits = ONE_STREAM
    load_error: BaseException | None = None
    poisoned: set[int] = field(default_factory=set)
    most_at_once: int = 1_000_000  # images that fit into memory
    unsure: set[int] = field(default_factory=set)
    swayed: set[int] = field(default_factory=set)
    speechless: set[int] = field(default_factory=set)
    broken: bool = False
    miscounts: int = 1_000_000  # batches of so many images or more get a result too few
    image_s: float = 0.001  # what the warm-up measured
    together: threading.Barrier | None = None  # batches that begin must meet here
    may_load: threading.Event = field(default_factory=threading.Event)
    may_answer: threading.Event = field(default_factory=threading.Event)
    begun: SimpleQueue[list[int]] = field(default_factory=SimpleQueue)
    seen: list[Job] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_load.set()
        self.may_answer.set()

    def load(self) -> Loaded:
        assert self.may_load.wait(PATIENCE_S)
        if self.load_error is not None:
            raise self.load_error
        return Loaded(MODEL, self.limits, costs(self.limits, self.image_s))

    def classify(self, jobs: Sequence[Job], threads: int) -> Sequence[Result]:
        if self.together is not None:
            self.together.wait(PATIENCE_S)
        numbers = [job.pixels[0] for job in jobs]
        self.seen += jobs
        self.threads.append(threads)
        self.begun.put(numbers)
        assert self.may_answer.wait(PATIENCE_S)
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self.poisoned & set(numbers):
            raise RuntimeError("poisoned")
        if len(jobs) > self.most_at_once:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: not enough memory: "
                "you tried to allocate 4294967296 bytes."
            )
        results = [self._result(job) for job in jobs]
        return results[1:] if len(jobs) >= self.miscounts else results

    def memory_bytes(self) -> int:
        return 1234

    def next_batch(self) -> list[int]:
        """The pictures of the next batch that is begun; waits for it."""
        return self.begun.get(timeout=PATIENCE_S)

    @property
    def numbers(self) -> list[int]:
        """Pictures that were given to compute, in order."""
        return [job.pixels[0] for job in self.seen]

    def _result(self, job: Job) -> Result:
        pruning, top_k = job.submit.pruning, job.submit.top_k
        runs = 2 if job.submit.margin is not None and job.pixels[0] in self.unsure else 1
        ratio = applied_ratio(pruning if runs == 1 else UNPRUNED)
        stages = kept_patches(ratio)
        first = job.pixels[0] + (job.pixels[0] in self.swayed and pruning == UNPRUNED)
        return Result(
            classes=[(first + place) % 11 for place in range(top_k)],
            scores=[
                float("nan") if job.pixels[0] in self.speechless else 0.5 ** (place + 1)
                for place in range(top_k)
            ],
            kept_counts=tuple(len(stage) for stage in stages),
            kept=tuple(np.array(stage, "<u2").tobytes() for stage in stages)
            if job.submit.kept_patches
            else (),
            keep_ratio=ratio,
            compute=cost(pruning, runs),
            runs=runs,
            logits=np.array(LOGITS, "<f4").tobytes() if job.submit.logits else None,
        )


@dataclass
class RunningEngine:
    """An engine in a thread of its own."""

    engine: Engine
    thread: threading.Thread
    failure: BaseException | None = None

    def ended(self) -> bool:
        self.thread.join(PATIENCE_S)
        return not self.thread.is_alive()


@contextmanager
def running_engine(
    backend: FakeBackend, address: str, name: str = "engine-0", agreement: Agreement | None = None
) -> Iterator[RunningEngine]:
    """Run an engine until the block ends. What `run` raised is in ``failure``."""
    engine = Engine(name, address, backend, agreement)

    def run() -> None:
        try:
            engine.run()
        except BaseException as error:
            running.failure = error

    running = RunningEngine(engine, threading.Thread(target=run, name="engine"))
    running.thread.start()
    try:
        yield running
    finally:
        backend.may_load.set()
        backend.may_answer.set()
        engine.stop()
        assert running.ended(), "the engine did not stop"
    if running.failure is not None:
        raise running.failure


class Peer:
    """A front end that sends what it is told to, message or not."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(address)
        self.begun: list[list[int]] = []

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._context.term()

    def send(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def say(self, message: FromFrontEnd, *frames: bytes) -> None:
        self.send(encode(message), *frames)

    def hear(self) -> FromEngine:
        """The next message of the engine that is not about its load; what it says of images that it has begun
        is kept in ``begun``."""
        while True:
            message = self.hear_any()
            if isinstance(message, Begun):
                self.begun.append(message.ids)
            elif not isinstance(message, Load):
                return message

    def hear_any(self) -> FromEngine:
        """The next message of the engine."""
        assert self._socket.poll(PATIENCE_S * 1000), "the engine says nothing"
        return decode_from_engine(self._socket.recv_multipart()[0])

    def status(self) -> Status:
        """The engine's status; no other message may come before it."""
        self.say(Ping())
        answer = self.hear()
        assert isinstance(answer, Status), answer
        return answer

    def wait_until_ready(self) -> None:
        """Ask until the model is there; nobody tells."""
        until = time.monotonic() + PATIENCE_S
        while self.status().model is None:
            assert time.monotonic() < until, "the engine does not become ready"
            time.sleep(0.005)


@contextmanager
def busy_engine(backend: FakeBackend, address: str) -> Iterator[Peer]:
    """A peer of an engine that computes the peer's image 1 until ``backend.may_answer`` is set."""
    backend.may_answer.clear()
    with running_engine(backend, address), Peer(address) as peer:
        peer.wait_until_ready()
        peer.say(submit(1), pixels(1))
        assert backend.next_batch() == [1]
        yield peer


@asynccontextmanager
async def connected(*addresses: str, **options: Any) -> AsyncIterator[EngineClient]:
    """A client of these engines, started and closed."""
    client = EngineClient(addresses, **options)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def ready_client(*addresses: str, **options: Any) -> AsyncIterator[EngineClient]:
    """A client that has heard from all of these engines that they are ready."""
    async with connected(*addresses, **options) as client:
        await until(lambda: all(engine["ready"] for engine in client.engines), "all engines to be ready")
        yield client


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for what sends no event."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"waited in vain for {what}") from None


def wait_for(condition: Callable[[], object], what: str) -> None:
    """`until`, without an event loop."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)


async def ask_behind(
    client: EngineClient, backend: FakeBackend, first: Question, *others: Question
) -> list[asyncio.Task[Classified]]:
    """Ask ``others`` once ``first`` is being computed, which a closed ``may_answer`` makes last."""
    backend.may_answer.clear()
    asked = [asyncio.create_task(client.classify(first))]
    assert await begun(backend) == [first.pixels[0, 0, 0]]
    asked += [asyncio.create_task(client.classify(other)) for other in others]
    return asked


async def begun(backend: FakeBackend) -> list[int]:
    """The pictures of the next batch that the backend begins, without blocking the event loop."""
    return await asyncio.to_thread(backend.next_batch)


class ScriptedEngine:
    """An engine that answers pings with the status it is given, keeps what it is sent, and says no more than
    it is told to."""

    def __init__(self, socket: zmq.asyncio.Socket, status: Status) -> None:
        self._socket = socket
        self.status = status
        self.mute = False
        self.submitted: asyncio.Queue[tuple[bytes, Submit, bytes]] = asyncio.Queue()
        self.heard: list[FromFrontEnd] = []

    async def listen(self) -> None:
        while True:
            sender, head, *frames = await self._socket.recv_multipart()
            message = decode_from_front_end(head)
            self.heard.append(message)
            if isinstance(message, Ping):
                if not self.mute:
                    await self.say(sender, self.status)
            elif isinstance(message, Submit):
                self.submitted.put_nowait((sender, message, frames[0]))

    async def say(self, to: bytes, message: FromEngine, *frames: bytes) -> None:
        await self.send(to, encode(message), *frames)

    async def send(self, to: bytes, *frames: bytes) -> None:
        await self._socket.send_multipart([to, *frames])

    async def die(self) -> None:
        """Be gone at once."""
        self._socket.close(0)

    async def next_submit(self) -> tuple[bytes, Submit, bytes]:
        """Sender, message and pixels of the next image that is sent."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.submitted.get()


@asynccontextmanager
async def scripted_engine(address: str, incarnation: str = "one") -> AsyncIterator[ScriptedEngine]:
    """A scripted engine that says it is ready. When the block ends it is dead: its socket is gone."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(address)
    engine = ScriptedEngine(socket, Status(incarnation=incarnation, model=MODEL, waiting_tokens=0))
    listening = asyncio.create_task(engine.listen())
    try:
        yield engine
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        socket.close()
        context.term()


def unlink(address: str) -> None:
    """Remove a dead engine's socket file, as its folder's owner may."""
    Path(address.removeprefix("ipc://")).unlink(missing_ok=True)


def noise(value: object) -> bytes:
    """msgpack that is no message."""
    return msgspec.msgpack.encode(value)
