"""A new program as a process to be waited for."""

import asyncio
import os
import signal
import sys
import threading

import pytest

from app.processes.spawned import Spawned

CODE = (sys.executable, "-S", "-c")


async def life(script: str, number: int | None = None) -> tuple[int | None, int]:
    """What it is while it runs, and its exit code."""
    process = Spawned((*CODE, script), os.environ)
    before = process.returncode
    if number is not None:
        process.send_signal(number)
    async with asyncio.timeout(60):
        return before, await process.wait()


@pytest.mark.anyio
async def test_its_end_is_told_by_its_code_or_its_signal() -> None:
    """As of every subprocess."""
    assert await life("import time; time.sleep(0.05); raise SystemExit(3)") == (None, 3)
    assert await life("import time; time.sleep(600)", signal.SIGKILL) == (None, -signal.SIGKILL)


@pytest.mark.anyio
async def test_what_there_is_not_cannot_be_started() -> None:
    """An OSError, as where the system has no room."""
    with pytest.raises(FileNotFoundError):
        Spawned(("/no/such/program",), os.environ)


@pytest.mark.anyio
async def test_it_has_the_files_that_it_inherits() -> None:
    """And no others."""
    reader, writer = os.pipe()
    try:
        process = Spawned((*CODE, f"import os; os.write({writer}, b'here')"), os.environ, (writer,))
        assert await process.wait() == 0
        assert os.read(reader, 100) == b"here"
        process = Spawned((*CODE, f"import os; os.write({writer}, b'here')"), os.environ)
        assert await process.wait() == 1
    finally:
        os.close(reader)
        os.close(writer)


def test_it_is_waited_for_in_a_thread_under_uvloops_policy() -> None:
    """As in a Ray replica."""
    uvloop = pytest.importorskip("uvloop")
    codes: list[tuple[int | None, int]] = []

    def run() -> None:
        codes.append(asyncio.run(life("raise SystemExit(5)")))

    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    finally:
        asyncio.set_event_loop_policy(before)
    assert [code for _, code in codes] == [5]
