"""Decoding in processes: pixels and problems as in this one, whatever an image does to its process."""

import asyncio
import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import psutil
import pytest
from PIL import Image
from prometheus_client import REGISTRY

from app.decoding import decoder_process, pool
from app.decoding.decoder import SIZES, STARTED, Outcome
from app.decoding.images import FORMATS, ImageLimits, ModelInput, decode
from app.decoding.pool import DecodingProcesses, memory_for
from app.errors import NotReady, Problem, TooLarge, UndecodableImage, UnsupportedMediaType
from tests.app.fakes import MODEL, encoded, picture

T = TypeVar("T")

ROOT = Path(__file__).parents[3]
SPEC = MODEL.input
ROOMY = ImageLimits(1_000_000)
WAIT_S = 60


class Driven:
    """Decoding processes with an event loop of their own, in a thread: asked and ended from outside."""

    def __init__(self, processes: int, timeout_s: float, memory_bytes: int) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.pool = self.call(lambda: DecodingProcesses(processes, timeout_s, memory_bytes))

    def __enter__(self) -> "Driven":
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self.pool.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def call(self, function: Callable[[], T]) -> T:
        """What the function returns, called in the loop."""

        async def called() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(called(), self.loop).result(WAIT_S)

    def submit(self, data: bytes, limits: ImageLimits = ROOMY) -> Future[ModelInput]:
        """Have it decoded."""

        async def decoded() -> ModelInput:
            taken: list[np.ndarray] = []
            warnings = await self.pool.decode(data, SPEC, limits, lambda pixels: taken.append(pixels.copy()))
            (pixels,) = taken
            return ModelInput(pixels, warnings)

        return asyncio.run_coroutine_threadsafe(decoded(), self.loop)

    def look_for_trouble(self) -> str | None:
        """As a probe does, and what comes of the trial that it may begin is waited for."""
        found = self.call(self.pool.look_for_trouble)
        wait_until(lambda: self.pool._trial is None or self.pool._trial.done())
        return found


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; fail the test if it does not in time."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def decoders() -> Iterator[Driven]:
    """Two, with time enough for a busy machine."""
    with Driven(2, WAIT_S, memory_for(ROOMY.pixels)) as processes:
        yield processes


def replaced(cause: str) -> float:
    return REGISTRY.get_sample_value("trimvit_decoders_replaced_total", {"cause": cause}) or 0.0


def running() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "decode" in " ".join(child.cmdline())
    ]


@pytest.mark.parametrize("file_format", FORMATS)
def test_pixels_are_those_of_this_process(decoders: Driven, file_format: str) -> None:
    """Every format, bit for bit, within the process's limits."""
    data = encoded(picture(60, 44), file_format)
    pixels = decoders.submit(data).result(WAIT_S).pixels
    assert np.array_equal(pixels, decode(data, SPEC, ROOMY).pixels)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", UndecodableImage),
        (b"no image", UndecodableImage),
        (b"8BPS" + bytes(30), UnsupportedMediaType),
        (encoded(picture(2000, 501)), TooLarge),
    ],
)
def test_problems_are_those_of_this_process(decoders: Driven, data: bytes, problem: type[Problem]) -> None:
    """Class and words; the process goes on."""
    before = {child.pid for child in running()}
    with pytest.raises(problem) as there:
        decoders.submit(data).result(WAIT_S)
    with pytest.raises(problem) as here:
        decode(data, SPEC, ROOMY)
    assert there.value.detail == here.value.detail
    assert {child.pid for child in running()} == before


def test_many_images_at_once_do_not_mix(decoders: Driven) -> None:
    """Every image gets its own pixels, with more images than processes."""
    images = [encoded(picture(40 + number, 24, (number, 2 * number, 100))) for number in range(40)]
    futures = [decoders.submit(data) for data in images]
    for data, future in zip(images, futures, strict=True):
        assert np.array_equal(future.result(WAIT_S).pixels, decode(data, SPEC, ROOMY).pixels)


def test_a_decoding_process_has_no_secrets_and_little_to_lose(
    decoders: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No API key or token in its environment, no socket and no memory but its own, no core file, bounded
    memory."""
    monkeypatch.setenv("TRIMVIT_API_KEYS", "alice:0123456789abcdef")
    monkeypatch.setenv("HF_TOKEN", "secret")
    with Driven(1, WAIT_S, memory_for(1000)) as own:
        own.submit(encoded()).result(WAIT_S)
        (child,) = (process._process for process in own.pool._children)
        environment = psutil.Process(child.pid).environ()
        assert not [name for name in environment if "KEY" in name or "TOKEN" in name]
        assert resource.prlimit(child.pid, resource.RLIMIT_CORE) == (0, 0)
        assert resource.prlimit(child.pid, resource.RLIMIT_AS) == (memory_for(1000),) * 2
        opened = list(Path(f"/proc/{child.pid}/fd").iterdir())
        files = [str(entry.readlink()) for entry in opened]
        assert sum(name.startswith("socket:") for name in files) == 1
        assert len({entry.stat().st_ino for entry in opened if "memfd:" in str(entry.readlink())}) == 1
        known = ("socket:", "/memfd:", "/dev/null", "pipe:")
        assert not [name for name in files if not name.startswith(known)]


class StandIn:
    """Programs in place of `python -m app.decoding.decoder`. They misbehave as told, once they have started,
    if they do; ``started`` counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *programs: str) -> None:
        self.started = 0
        start = subprocess.Popen

        def popen(command: list[str], **options: object) -> object:
            assert command[1:] == ["-m", "app.decoding.decoder"]
            program = programs[min(self.started, len(programs) - 1)]
            self.started += 1
            if program == NEVER_STARTS:
                command = [sys.executable, "-c", "raise SystemExit(3)"]
            elif program:
                link = "link = socket.socket(fileno=int(os.environ['TRIMVIT_DECODER_SOCKET']))"
                link += f"\nlink.sendall({STARTED!r})"
                command = [sys.executable, "-c", f"import os, socket\n{link}\n{program}"]
            return start(command, **options)  # type: ignore[call-overload]

        monkeypatch.setattr(decoder_process.subprocess, "Popen", popen)


SOUND = ""
HANGS = "link.recv(1)\nimport time\ntime.sleep(600)"
HOLDS_THE_LOCK = "link.recv(1)\nimport re\nre.match('(a*)*b', 'a' * 100)"  # never comes back, nor lets go
CRASHES = "link.recv(1)\nos.kill(os.getpid(), 11)"
DIES_IDLE = "pass"
NEVER_STARTS = "never"


@pytest.mark.parametrize("program", [HANGS, HOLDS_THE_LOCK])
def test_an_image_that_takes_too_long_is_refused_and_its_process_replaced(
    monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """The next image finds a sound process, and nothing is left behind, however fast the old one hung."""
    stand_in = StandIn(monkeypatch, program, SOUND)
    slow = replaced("slow")
    with Driven(1, 1.0, memory_for(1000)) as processes:
        first = next(iter(processes.pool._children))._process
        with pytest.raises(UndecodableImage, match=r"longer than the 1 s allowed"):
            processes.submit(encoded()).result(WAIT_S)
        assert first.returncode == -signal.SIGKILL
        processes.pool._timeout_s = WAIT_S
        assert processes.submit(encoded()).result(WAIT_S).pixels.shape == (*SPEC.size, 3)
    assert stand_in.started == 2
    assert replaced("slow") == slow + 1


def test_all_processes_may_hang_and_others_are_answered_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging decoder cannot take all the places for good."""
    StandIn(monkeypatch, HANGS, HANGS, HANGS, SOUND)
    with Driven(3, 1.0, memory_for(1000)) as processes:
        hung = [processes.submit(encoded()) for _ in range(3)]
        for future in hung:
            with pytest.raises(UndecodableImage):
                future.result(WAIT_S)
        processes.pool._timeout_s = WAIT_S
        for future in [processes.submit(encoded()) for _ in range(9)]:
            assert future.result(WAIT_S).pixels.shape == (*SPEC.size, 3)


def test_an_image_that_kills_its_process_twice_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the image then; this process goes on, and the log says by what signal."""
    stand_in = StandIn(monkeypatch, CRASHES, CRASHES, SOUND)
    died = replaced("died")
    with Driven(1, WAIT_S, memory_for(1000)) as processes:
        with pytest.raises(UndecodableImage, match="image crashed the decoder twice"):
            processes.submit(encoded()).result(WAIT_S)
        processes.submit(encoded()).result(WAIT_S)
    assert stand_in.started == 3
    assert replaced("died") == died + 2
    assert "SIGSEGV" in caplog.text


@pytest.mark.parametrize("program", [CRASHES, DIES_IDLE])
def test_an_innocent_image_survives_the_death_of_its_process(
    monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """Killed by the system or by hand, before or with the image: the image is decoded by another."""
    StandIn(monkeypatch, program, SOUND)
    with Driven(1, WAIT_S, memory_for(1000)) as processes:
        assert processes.submit(encoded()).result(WAIT_S).pixels.shape == (*SPEC.size, 3)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0",
        b"\xff" * 12,
        SIZES.pack(2**31, 0),
        SIZES.pack(3, 2**60) + b"\x92\xc0\xa0",
        SIZES.pack(3, 5) + b"\x92\xc0\xa0hello",
        SIZES.pack(5, 0) + b"hello",
        SIZES.pack(3, 0) + b"\x92\x01\xa0",
    ],
    ids=repr,
)
def test_what_a_process_answers_is_not_trusted(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    """A decoder that was taken over can make its own image fail, and no more."""
    StandIn(monkeypatch, f"link.recv(10**6)\nlink.sendall({answer!r})")
    with Driven(1, WAIT_S, memory_for(1000)) as processes, pytest.raises(UndecodableImage):
        processes.submit(encoded()).result(WAIT_S)


def test_an_answer_before_the_image_has_been_sent_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is still sent of it would be taken for the next image."""
    height, width = SPEC.size
    answer = SIZES.pack(4, height * width * 3) + msgspec.msgpack.encode(Outcome())
    StandIn(monkeypatch, f"link.recv(1)\nlink.sendall({answer!r})\nlink.recv(1)")
    with Driven(1, WAIT_S, memory_for(1000)) as processes:
        with pytest.raises(UndecodableImage, match="twice"):
            processes.submit(b"\xff\xd8\xff" + bytes(10**7)).result(WAIT_S)
        assert processes.pool._idle.qsize() == 1


def test_where_no_process_starts_no_image_is_blamed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The sender is told to come again, the operator why; who asks about it has another start tried."""
    stand_in = StandIn(monkeypatch, *[NEVER_STARTS] * 5, SOUND)
    with Driven(1, WAIT_S, memory_for(1000)) as processes:
        processes.look_for_trouble()
        assert (
            processes.pool._trouble
            == "no image decoding process can be started: the last one ended with exit code "
            "3"
        )
        with pytest.raises(NotReady, match="no image decoding process can be started"):
            processes.submit(encoded()).result(WAIT_S)
        assert stand_in.started == 5
        assert "no image decoding process can be started" in caplog.text
        assert processes.look_for_trouble() is not None
        assert processes.look_for_trouble() is None
        assert processes.submit(encoded()).result(WAIT_S).pixels.shape == (*SPEC.size, 3)
        assert len(processes.pool._children) == 1


def test_one_that_died_while_it_had_nothing_to_do_is_replaced() -> None:
    """Probes ask for trouble all the time; no image has to wait for the new one's start."""
    with Driven(3, WAIT_S, memory_for(1000)) as processes:
        processes.look_for_trouble()
        before = set(processes.pool._children)
        (victim, *_) = before
        victim._process.kill()
        victim._process.wait(WAIT_S)
        assert processes.look_for_trouble() is None
        assert victim not in processes.pool._children
        assert len(processes.pool._children - before) == 1
        assert processes.pool._idle.qsize() == 3
        assert all(child.alive for child in processes.pool._children)


def test_all_threads_are_there_from_the_start() -> None:
    """A system without room for another thread, later, fails no image."""
    with Driven(3, 10.0, memory_for(1000)):
        names = [thread.name for thread in threading.enumerate()]
        assert len([name for name in names if name.startswith("decode")]) >= 3


def test_a_system_without_room_for_a_process_is_no_images_fault(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start and in place of one that died: the sender is told to come again, and the next one finds
    a process as soon as there is room."""
    start = subprocess.Popen
    room = False

    def popen(command: list[str], **options: object) -> object:
        if not room:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return start(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", popen)
    with Driven(1, WAIT_S, memory_for(1000)) as processes:
        processes.look_for_trouble()
        refused = processes.submit(encoded())
        with pytest.raises(NotReady, match="the last one could not be created"):
            refused.result(WAIT_S)
        assert os.strerror(errno.EAGAIN) in caplog.text
        room = True
        assert processes.submit(encoded()).result(WAIT_S).pixels.shape == (*SPEC.size, 3)
        assert processes.look_for_trouble() is None

        room = False
        (child,) = processes.pool._children
        child._process.kill()
        with pytest.raises(NotReady):
            processes.submit(encoded()).result(WAIT_S)
        assert not processes.pool._children
        room = True
        assert processes.submit(encoded()).result(WAIT_S).pixels.shape == (*SPEC.size, 3)


def test_an_image_that_takes_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's limit is told to the sender; the process goes on."""
    stand_in = StandIn(monkeypatch, SOUND)
    monkeypatch.setattr(pool, "_OWN_BYTES", 400 * 2**20)
    monkeypatch.setattr(pool, "_BYTES_PER_PIXEL", 0)
    huge = encoded(Image.new("RGB", (9000, 9000)), "PNG", compress_level=1)
    with Driven(1, WAIT_S, memory_for(1000)) as processes:
        with pytest.raises(TooLarge, match="more than the 400 MB of memory allowed"):
            processes.submit(huge, ImageLimits(10**9)).result(WAIT_S)
        processes.submit(encoded()).result(WAIT_S)
    assert stand_in.started == 1


def test_nothing_is_left_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with an image under way that hangs: the end does not wait for it."""
    before = {child.pid for child in running()}
    StandIn(monkeypatch, HANGS)
    with Driven(2, 600, memory_for(1000)) as processes:
        future = processes.submit(encoded())
        wait_until(lambda: processes.pool._idle.qsize() == 1)
        processes.call(processes.pool.close)
        with pytest.raises(Problem):
            future.result(WAIT_S)
    assert {child.pid for child in running()} == before


def test_it_ends_with_its_parent() -> None:
    """kill -9 of an HTTP process leaves no decoder."""
    program = (
        "import time\n"
        "from app.decoding.pool import DecodingProcesses, memory_for\n"
        "if __name__ == '__main__':\n"
        "    processes = DecodingProcesses(2, 10, memory_for(1000))\n"
        "    print('started', flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.readline()
    children = psutil.Process(parent.pid).children()
    assert len(children) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=WAIT_S)
    assert alive == []


def test_signals_to_the_group_do_not_end_it(decoders: Driven) -> None:
    """systemd and terminals signal every process; its parent still needs it while it drains."""
    decoders.submit(encoded()).result(WAIT_S)
    pids = {child.pid for child in running()}
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    for _ in range(4):
        decoders.submit(encoded()).result(WAIT_S)
    assert pids <= {child.pid for child in running()}


def test_the_ends_of_a_link_are_private() -> None:
    """An unnamed pair: nobody else can connect to it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert ours.getsockname() == ""


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("mode", "file_format", "options"),
    [
        ("RGB", "JPEG", {"progressive": True}),
        ("CMYK", "JPEG", {}),
        ("RGBA", "PNG", {"compress_level": 1}),
        ("LA", "PNG", {"compress_level": 1}),
        ("I;16", "PNG", {"compress_level": 1}),
        ("F", "TIFF", {"compression": "tiff_lzw"}),
        ("I", "TIFF", {"compression": "tiff_lzw"}),
        ("CMYK", "TIFF", {"compression": "tiff_lzw"}),
        ("P", "GIF", {"transparency": 0}),
        ("RGBA", "WEBP", {"lossless": True, "quality": 0, "method": 0}),
        ("RGB", "BMP", {}),
        ("RGBA", "AVIF", {"speed": 10}),
        ("RGBA", "HEIF", {"quality": 10, "enc_params": {"preset": "ultrafast"}}),
    ],
    ids=str,
)
def test_an_image_of_the_most_pixels_fits_into_the_memory(
    mode: str, file_format: str, options: dict[str, object]
) -> None:
    """What the pixel limit allows, the memory limit does not refuse, whatever the format."""
    if file_format not in FORMATS:
        pytest.skip(f"this Pillow has no {file_format}")
    side = 8000
    data = encoded(Image.new(mode, (side, side)), file_format, **options)
    limits = ImageLimits(side * side)
    with Driven(1, 600, memory_for(limits.pixels)) as processes:
        pixels = processes.submit(data, limits).result(600).pixels
    assert pixels.shape == (*SPEC.size, 3)
