"""The process that workers are forked from: real processes, and small modules in place of torch."""

import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from app.processes.fork_server import ForkServer
from app.processes.parent_death import SUPERVISOR_VARIABLE
from app.settings.settings import Settings
from tests.app.dispatch.rig import until

pytestmark = pytest.mark.anyio

PATIENCE_S = 60.0
MODULES = {
    "heavy": "",
    "with_threads": """
import threading, time
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
""",
    "broken": "raise RuntimeError('no such library')",
    # A system without room for another process, for now.
    "no_room": """
import os
fork = os.fork
def full():
    os.fork = fork
    raise BlockingIOError(11, "Resource temporarily unavailable")
os.fork = full
""",
    "talks_nonsense": "import os, sys\nos.write(int(sys.argv[1]), b'nonsense\\n')",
    "endless": "import time\ntime.sleep(600)",
    # Tells of itself in a file, replaced at once; then ends as it is told, or waits to be ended.
    "program": """
import gc, json, os, signal, sys, time
from pathlib import Path
from app.processes.parent_death import die_with_parent
die_with_parent()
said = {"environment": dict(os.environ), "heavy": "heavy" in sys.modules}
said |= {"name": __name__, "pid": os.getpid(), "collects": gc.isenabled()}
said["blocked"] = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
Path(f"{os.environ['SAY']}.{os.getpid()}").write_text(json.dumps(said))
Path(f"{os.environ['SAY']}.{os.getpid()}").replace(os.environ["SAY"])
if "CODE" in os.environ:
    sys.exit(int(os.environ["CODE"]))
time.sleep(600)
""",
}


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A folder that processes import from, beside this repository."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


@asynccontextmanager
async def fork_server(
    modules: Path, preloaded: Sequence[str] = ("heavy",), patience_s: float = PATIENCE_S
) -> AsyncIterator[ForkServer]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(modules), *filter(None, sys.path))),
        "OPENBLAS_NUM_THREADS": "1",
        "ONLY_ITS_OWN": "1",
        SUPERVISOR_VARIABLE: str(os.getpid()),
        "TRIMVIT_SETTINGS": Settings().model_dump_json(),
    }
    server = ForkServer(environment, preloaded, patience_s)
    try:
        yield server
    finally:
        await server.close()


def order(modules: Path, **variables: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join((str(modules), *filter(None, sys.path))),
        "SAY": str(modules / "said"),
        **variables,
    }


async def said(modules: Path) -> dict[str, object]:
    path = modules / "said"
    await until(path.exists, "the program to say something")
    told: dict[str, object] = json.loads(path.read_text())
    path.unlink()
    return told


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks are made on Linux only")
async def test_a_fork_has_what_was_imported_and_its_own_environment(modules: Path) -> None:
    """It runs as a program, and sees of the fork server's environment only what it was given itself."""
    async with fork_server(modules) as server:
        process = await server.start("program", order(modules, NUMBER="7"))
        told = await said(modules)
        assert (told["heavy"], told["name"], told["pid"]) == (True, "__main__", process.pid)
        assert isinstance(told["environment"], dict)
        assert told["environment"]["NUMBER"] == "7"
        assert told["collects"], "garbage is collected, though not during the imports"
        assert "ONLY_ITS_OWN" not in told["environment"]
        assert told["blocked"] == []
        assert process.returncode is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks are made on Linux only")
async def test_a_fork_of_one_thread_brings_no_warning(
    modules: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Python 3.12 and later warn of forks with threads, and take the fork server's for one."""
    async with fork_server(modules) as server:
        await server.start("program", order(modules))
        await said(modules)
    assert "Warning" not in capfd.readouterr().err


async def test_how_processes_end_is_told(modules: Path) -> None:
    """Exit codes and signals, also of those that end before anybody could have looked."""
    async with fork_server(modules) as server:
        quick = [await server.start("program", order(modules, CODE=str(code))) for code in range(5)]
        assert [await process.wait() for process in quick] == [0, 1, 2, 3, 4]
        for number in (signal.SIGTERM, signal.SIGKILL):
            (modules / "said").unlink(missing_ok=True)
            process = await server.start("program", order(modules))
            await said(modules)
            process.send_signal(number)
            assert await process.wait() == -number
            assert process.returncode == -number
            process.send_signal(number)  # too late, and nobody else is hit


@pytest.mark.parametrize("preloaded", ["with_threads", "broken"])
async def test_what_cannot_be_preloaded_costs_time_only(modules: Path, preloaded: str) -> None:
    """A process with threads is not forked: the program starts as a new one. A module that cannot be
    imported is left to the program to complain of."""
    async with fork_server(modules, ("heavy", preloaded)) as server:
        process = await server.start("program", order(modules))
        told = await said(modules)
        assert (told["heavy"], told["pid"]) == (preloaded == "broken", process.pid)
        assert told["blocked"] == [], "signals are the program's own"
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL


async def test_a_fork_server_that_dies_takes_its_forks_along_and_is_replaced(modules: Path) -> None:
    """Nobody is left whose end would not be told."""
    async with fork_server(modules) as server:
        forked = [await server.start("program", order(modules)) for _ in range(2)]
        await said(modules)
        living = [psutil.Process(process.pid) for process in forked]
        living[0].parent().kill()  # type: ignore[union-attr]
        assert [await process.wait() for process in forked] == [-signal.SIGKILL] * 2
        await until(lambda: not any(process.is_running() for process in living), "the forks' end")
        after = await server.start("program", order(modules, CODE="3"))
        assert await after.wait() == 3


async def test_an_import_that_never_ends_is_ended(modules: Path) -> None:
    """The start has failed then, and the next one may succeed."""
    async with fork_server(modules, ("endless",), patience_s=1.0) as server:
        process = await server.start("program", order(modules))
        assert process.returncode == -signal.SIGKILL


async def test_a_fork_that_fails_ends_nothing_that_runs(modules: Path) -> None:
    """The start fails with the system's word; the fork server, and so what it forked, goes on."""
    async with fork_server(modules, ("no_room",)) as server:
        with pytest.raises(OSError, match=r"no process can be started: .* Resource temporarily unavailable"):
            await server.start("program", order(modules))
        process = await server.start("program", order(modules, CODE="3"))
        assert await process.wait() == 3


async def test_a_fork_server_that_cannot_be_understood_is_ended(
    modules: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for ever for its word, and the log says what happened."""
    async with fork_server(modules, ("talks_nonsense",)) as server:
        process = await server.start("program", order(modules))
        assert await process.wait() == -signal.SIGKILL
        assert "background task failed: talk with the fork server" in caplog.text


async def test_nothing_is_started_after_the_end(modules: Path) -> None:
    """Closing ends what runs, and what would have been started."""
    async with fork_server(modules) as server:
        process = await server.start("program", order(modules))
        await server.close()
        assert await process.wait() == -signal.SIGKILL
        assert (await server.start("program", order(modules))).returncode == -signal.SIGKILL
