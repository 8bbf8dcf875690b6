"""A replica's processes are kept running. Small scripts stand for them."""

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import psutil
import pytest

from app.processes.environment import ProcessFiles
from app.processes.keeper import Process, Program
from app.processes.spawned import Spawned
from app.ray.processes import Processes
from app.settings.settings import Settings

PATIENCE_S = 60.0
BEGIN = """
import os, sys, time
from pathlib import Path
from app.processes.heartbeat import Beat, Heartbeat
from app.processes.reports import tell_reason
heartbeat = Heartbeat(Path(os.environ["TRIMVIT_KEPT_HEARTBEAT"]))
Path(os.environ["TRIMVIT_KEPT_HEARTBEAT"] + f".{os.getpid()}").touch()
"""
LIVES = (
    "turn = 0\nwhile True:\n    turn += 1; heartbeat.write(Beat(turns=turn, ready=True)); time.sleep(0.05)"
)
STANDS_STILL = "heartbeat.write(Beat(turns=1, ready=True)); time.sleep(600)"
CANNOT_LOAD = (
    'tell_reason(Path(os.environ["TRIMVIT_KEPT_REASON"]), ValueError("no such model")); sys.exit(78)'
)


@dataclass
class Kept:
    """The processes that were started, and what was said when they were given up."""

    folder: Path
    given_up: SimpleQueue[str] = field(default_factory=SimpleQueue)

    def next_process(self, seen: set[int]) -> psutil.Process:
        """The first process that is not among those seen; it is added to them."""
        waiting = threading.Event()
        for _ in range(int(PATIENCE_S / 0.05)):
            for mark in self.folder.glob("*.heartbeat.*"):
                pid = int(mark.suffix.removeprefix("."))
                if pid not in seen:
                    seen.add(pid)
                    return psutil.Process(pid)
            waiting.wait(0.05)
        pytest.fail("no process was started")


@contextmanager
def kept(script: str, **settings: float) -> Iterator[Kept]:
    with tempfile.TemporaryDirectory(prefix="trimvit-test-") as name:
        given_up: SimpleQueue[str] = SimpleQueue()
        command = (sys.executable, "-c", BEGIN + script)
        files = ProcessFiles(Path(name), "kept")
        told = {"TRIMVIT_KEPT_HEARTBEAT": str(files.heartbeat), "TRIMVIT_KEPT_REASON": str(files.reason)}

        async def start() -> Process:
            return Spawned(command, {**os.environ, **told})

        programs = [Program(files, start)]
        processes = Processes(Settings(**settings), programs, given_up.put)  # type: ignore[arg-type]
        processes.start()
        try:
            yield Kept(Path(name), given_up)
        finally:
            processes.stop()


def is_ready(folder: Path) -> bool:
    from app.processes.heartbeat import Heartbeat

    return Heartbeat(folder / "kept.heartbeat").read().ready


def wait_ready(running: Kept) -> None:
    waiting = threading.Event()
    for _ in range(int(PATIENCE_S / 0.05)):
        if is_ready(running.folder):
            return
        waiting.wait(0.05)
    pytest.fail("the process does not become ready")


def test_a_process_that_dies_is_started_again_and_stopped_in_the_end() -> None:
    """kill -9 brings a successor; stop ends that, and no third comes."""
    seen: set[int] = set()
    with kept(LIVES) as running:
        first = running.next_process(seen)
        wait_ready(running)
        first.kill()
        second = running.next_process(seen)
        assert running.given_up.empty()
    assert not second.is_running() or second.status() == psutil.STATUS_ZOMBIE
    assert len(seen) == 2


def test_a_process_that_hangs_is_killed_and_started_again() -> None:
    """A main loop that stands still is no life."""
    seen: set[int] = set()
    with kept(STANDS_STILL, hang_after_s=0.5) as running:
        first = running.next_process(seen)
        running.next_process(seen)
        assert not first.is_running() or first.status() == psutil.STATUS_ZOMBIE


def test_a_process_that_never_comes_up_is_given_up_with_its_reason() -> None:
    """Starting again would not help: another replica must."""
    with kept(CANNOT_LOAD) as running:
        assert "ValueError: no such model" in running.given_up.get(timeout=PATIENCE_S)


def test_a_keeper_that_cannot_go_on_gives_up() -> None:
    """Its folder is gone, or too many files are open: nobody is left without a process and without a word."""
    seen: set[int] = set()
    with kept(LIVES) as running:
        first = running.next_process(seen)
        wait_ready(running)
        shutil.rmtree(running.folder)
        first.kill()
        assert "kept cannot be kept running: FileNotFoundError" in running.given_up.get(timeout=PATIENCE_S)


def test_starts_that_fail_in_a_row_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that came up once and then no more, as after the loss of its GPU."""
    monkeypatch.setattr("app.processes.restarts._SPACING_S", (0.0,))
    once = 'first = not list(Path(os.environ["TRIMVIT_KEPT_HEARTBEAT"]).parent.glob("*.was"))\n'
    once += 'Path(os.environ["TRIMVIT_KEPT_HEARTBEAT"] + ".was").touch()\n'
    once += "if first: heartbeat.write(Beat(turns=1, ready=True))\nsys.exit(3)"
    with kept(once) as running:
        assert "does not start: exit code 3" in running.given_up.get(timeout=PATIENCE_S)
