"""Background tasks and threads: none ends without a word."""

import ast
import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from app.processes import background

pytestmark = pytest.mark.anyio

APP = Path(background.__file__).parents[1]
PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
def nothing_was_told_before() -> Iterator[None]:
    """The same failure is told in full once a minute."""
    background._told.clear()
    yield
    background._told.clear()


def incidents(name: str) -> float:
    return REGISTRY.get_sample_value("trimvit_incidents_total", {"task": name}) or 0.0


async def test_a_kept_task_that_fails_is_told_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """Its failure is in the log with the traceback, and counted; then the work goes on."""
    tries = 0

    async def work() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError(24, "Too many open files")

    before = incidents("work")
    async with asyncio.timeout(PATIENCE_S):
        await background.kept(work, "work")
    assert tries == 3
    assert incidents("work") == before + 2
    assert caplog.text.count("background task failed: work: OSError: [Errno 24] Too many open files") == 2
    assert caplog.text.count("Traceback") == 1, "the same again is one line"


async def test_a_kept_task_can_be_cancelled_in_its_pause() -> None:
    """Whoever stops does not wait for another try."""
    failed = asyncio.Event()

    async def work() -> None:
        failed.set()
        raise RuntimeError("broken")

    task = background.kept(work, "work")
    await failed.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_needed_task_that_fails_says_so_to_who_needs_it(caplog: pytest.LogCaptureFixture) -> None:
    """The task itself raises nothing."""
    heard: list[str] = []

    async def work() -> None:
        raise RuntimeError("broken")

    await background.needed(work, "keeper", heard.append)
    assert heard == ["keeper failed: RuntimeError: broken"]
    assert "Traceback" in caplog.text


def test_a_thread_that_fails_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Even where it was told to exit, as a C extension may."""
    heard: list[BaseException] = []

    def work() -> None:
        raise SystemExit("as a C extension may")

    before = incidents("thread of ours")
    background.thread(work, "thread of ours", heard.append).join(PATIENCE_S)
    assert [str(error) for error in heard] == ["as a C extension may"]
    assert incidents("thread of ours") == before + 1
    assert "Traceback" in caplog.text


def test_a_kept_thread_that_fails_is_tried_again() -> None:
    """Until its work returns."""
    tries: list[int] = []

    def work() -> None:
        tries.append(1)
        if len(tries) < 2:
            raise RuntimeError("broken")

    thread = background.kept_thread(work, "work")
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert len(tries) == 2


def test_a_process_can_be_ended_by_its_thread() -> None:
    """With a word of why, and a code that says failure."""
    program = (
        "import time\nfrom app.processes import background\n"
        "background.thread(lambda: 1 / 0, 'vital', background.end_process)\ntime.sleep(60)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert "unrecoverable error, exiting: ZeroDivisionError: division by zero" in ended.stderr
    assert "Traceback" in ended.stderr


async def test_stray_failures_are_incidents(caplog: pytest.LogCaptureFixture) -> None:
    """Of callbacks, and of tasks that somebody else started and never asked for."""
    loop, hook = asyncio.get_running_loop(), threading.excepthook
    handler = loop.get_exception_handler()
    before = incidents("event loop"), incidents("thread")
    background.report_stray_failures()
    try:
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        stray = threading.Thread(target=lambda: [][0])
        stray.start()
        await asyncio.to_thread(stray.join)
    finally:
        loop.set_exception_handler(handler)
        threading.excepthook = hook
    assert (incidents("event loop"), incidents("thread")) == (before[0] + 1, before[1] + 1)
    assert "ZeroDivisionError" in caplog.text
    assert "IndexError" in caplog.text


def test_every_task_and_thread_is_started_here() -> None:
    """No module of the service starts one that nobody watches. (A task group's tasks are the group's.)"""
    bare = []
    for path in sorted(APP.rglob("*.py")):
        if path == Path(background.__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                called = ast.unparse(node.func)
                name = called.rpartition(".")[2]
                if name in {"ensure_future", "Thread", "Timer"} or (
                    name == "create_task" and called != "group.create_task"
                ):
                    bare.append(f"{path.relative_to(APP)}:{node.lineno}: {called}")
    assert bare == []
