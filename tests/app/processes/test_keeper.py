"""How a process is kept running. What stands for a process here ends when it is told to; for real ones see
tests/app/ray/test_processes.py and tests/system/test_faults.py."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from app.processes.environment import ProcessFiles
from app.processes.heartbeat import Beat, Heartbeat
from app.processes.keeper import End, Keeper, Process, Program, drain
from app.processes.reports import tell_reason
from app.settings.processes import ProcessSettings
from tests.app.dispatch.rig import until

pytestmark = pytest.mark.anyio
SETTINGS = ProcessSettings()


class FakeProcess:
    """Ends with a code, or by a signal that it does not ignore."""

    def __init__(self, code: int | None = None, ignored: frozenset[int] = frozenset()) -> None:
        self.pid = 2**22 + 1  # more than there can be
        self.returncode: int | None = None
        self.signals: list[int] = []
        self._ignored = ignored
        self._ended = asyncio.Event()
        if code is not None:
            self.exit(code)

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def exit(self, code: int) -> None:
        self.returncode = code
        self._ended.set()

    def send_signal(self, number: int) -> None:
        self.signals.append(number)
        if number not in self._ignored:
            self.exit(-number)


class Kept:
    """A program whose lives are given, and the keeper of it. After the last one, it is not started again."""

    def __init__(self, folder: Path, *lives: Callable[[], FakeProcess]) -> None:
        self.files = ProcessFiles(folder, "kept")
        self.lives = list(lives)
        self.ends: list[End] = []
        self.told: list[str] = []
        self.started: list[FakeProcess] = []
        program = Program(
            self.files, self._start, began=lambda: self.told.append("began"), ended=lambda: self._end()
        )
        self.keeper = Keeper(SETTINGS, program, self._goes_on, lambda: self.told.append("is up"))

    async def _start(self) -> Process:
        self.started.append(self.lives.pop(0)())
        return self.started[-1]

    def _end(self) -> None:
        self.told.append("ended")

    def _goes_on(self, end: End) -> bool:
        self.ends.append(end)
        return bool(self.lives)


def fails() -> FakeProcess:
    raise OSError("too many processes")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits."""
    monkeypatch.setattr("app.processes.restarts._SPACING_S", (0.0,))
    monkeypatch.setattr("app.processes.keeper._TICK_S", 0.001)


async def test_what_has_ended_is_started_again_until_told_otherwise(tmp_path: Path) -> None:
    """With why it ended: its own word, else how; and around each life, whoever wants to know is told."""
    kept = Kept(tmp_path, lambda: FakeProcess(3), lambda: FakeProcess(-9), lambda: FakeProcess(78))
    tell_reason(kept.files.reason, ValueError("no such model"))
    await kept.keeper.run()
    assert [(end.code, end.reason, end.failed_starts) for end in kept.ends] == [
        (3, "ValueError: no such model", 1),
        (-9, "killed by SIGKILL, as by the kernel when memory runs out", 2),
        (78, "exit code 78", 3),
    ]
    assert not any(end.came_up or end.given_up or end.error for end in kept.ends)
    assert kept.told == ["began", "ended"] * 3


async def test_what_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    """The system lacks something now; whoever decides hears of the error."""
    kept = Kept(tmp_path, fails, lambda: FakeProcess(0))
    await kept.keeper.run()
    assert [type(end.error) for end in kept.ends] == [OSError, type(None)]
    assert kept.ends[0].reason == "OSError: too many processes"


async def test_what_comes_up_after_failed_starts_is_told_of(tmp_path: Path) -> None:
    """And from then on it has come up, in this life and in those after it."""
    kept = Kept(tmp_path, lambda: FakeProcess(1), FakeProcess, lambda: FakeProcess(2))
    running = asyncio.create_task(kept.keeper.run())
    async with asyncio.timeout(30):
        await until(lambda: len(kept.started) == 2, "the second start")
        Heartbeat(kept.files.heartbeat).write(Beat(turns=1, ready=True))
        await until(lambda: "is up" in kept.told, "the keeper to see it")
        kept.started[-1].exit(0)
        await running
    assert [(end.came_up, end.failed_starts) for end in kept.ends] == [(False, 1), (True, 0), (True, 1)]


async def test_what_is_told_to_end_while_it_is_being_started_is_killed(tmp_path: Path) -> None:
    """It is not left running, and no other is started."""
    kept = Kept(tmp_path, lambda: ending(FakeProcess()), FakeProcess)

    def ending(process: FakeProcess) -> FakeProcess:
        kept.keeper.end(signal.SIGTERM)
        return process

    async with asyncio.timeout(30):
        await kept.keeper.run()
    assert [process.signals for process in kept.started] == [[signal.SIGKILL]]
    assert kept.ends == []


@pytest.mark.parametrize("late", [False, True])
async def test_processes_are_drained_one_group_after_the_other(tmp_path: Path, late: bool) -> None:
    """Each finishes what it has; what has not when the grace time is over is killed, which is told."""
    order: list[str] = []

    class Told(FakeProcess):
        def __init__(self, name: str) -> None:
            super().__init__(ignored=frozenset([signal.SIGTERM] if late and name == "b" else []))
            self.name = name

        def send_signal(self, number: int) -> None:
            order.append(f"{self.name} {signal.Signals(number).name}")
            super().send_signal(number)

    one, two = (Kept(tmp_path, lambda name=name: Told(name)) for name in "ab")  # type: ignore[misc]
    running = [asyncio.create_task(kept.keeper.run()) for kept in (one, two)]
    async with asyncio.timeout(30):
        await until(lambda: bool(one.started and two.started), "both to start")
        assert await drain([[one.keeper], [two.keeper]], grace_s=0.05) == (not late)
        await asyncio.gather(*running)
    assert order == ["a SIGTERM", "b SIGTERM", *(["b SIGKILL"] if late else [])]
