"""What goes wrong in the background of real processes: nothing stops for good, and nothing goes unsaid."""

import contextlib
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from tests.system.faulty import faulty_server, picture
from tests.system.server import CLIENT, Server, is_ready, wait_until


def answered(server: Server) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return CLIENT.post(f"{server.url}/v1/classify", content=picture(), timeout=120).status_code == 200
    return False


def descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


@contextlib.contextmanager
def limited(pid: int, what: int, most: int) -> Iterator[None]:
    """A running process under a lower limit."""
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (most, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # it was replaced meanwhile
            resource.prlimit(pid, what, before)


def http_process(server: Server) -> psutil.Process:
    return server.only_process("trimvit: http")


def worker(server: Server) -> psutil.Process:
    return server.only_process("trimvit: worker")


def private_folder(server: Server) -> Path:
    found = {
        path.parent
        for path in map(Path.readlink, Path(f"/proc/{server.supervisor.pid}/fd").iterdir())
        if path.name == "lock"
    }
    (folder,) = found
    return folder


def test_a_supervisor_without_files_goes_on_starting_processes(tmp_path: Path) -> None:
    """Too many open files: the starts fail, are told and counted, and succeed as soon as they can."""
    with faulty_server(tmp_path) as server:
        pid = server.supervisor.pid
        with limited(pid, resource.RLIMIT_NOFILE, 3):
            http_process(server).kill()
            wait_until(lambda: "Too many open files" in server.log.read_text(), "a start to fail")
            wait_until(lambda: server.log.read_text().count("http-0 exited (OSError") >= 2, "another try")
        wait_until(lambda: is_ready(server.url), "a start to succeed")
        assert answered(server)
        assert server.metric("trimvit_incidents_total", task="start of a process") >= 2
        assert (
            "background task failed: start of a process: OSError: [Errno 24] Too many open files"
            in server.log.read_text()
        )


def test_a_supervisor_without_room_on_its_disk_goes_on_starting_processes(tmp_path: Path) -> None:
    """Nothing can be written: no heartbeat, no report. It is done as soon as there is room."""
    with faulty_server(tmp_path) as server:
        with limited(server.supervisor.pid, resource.RLIMIT_FSIZE, 0):
            worker(server).kill()
            wait_until(lambda: not is_ready(server.url), "the loss to be seen")
            wait_until(
                lambda: server.metric("trimvit_incidents_total", task="start of a process") >= 2, "two tries"
            )
        wait_until(lambda: is_ready(server.url), "a start to succeed")
        assert answered(server)


def test_a_front_end_without_files_finds_its_dispatcher_again(tmp_path: Path) -> None:
    """Too many open files in an HTTP process when the dispatcher is replaced."""
    with faulty_server(tmp_path, "--http-workers", "1") as server:
        front = http_process(server)
        # Below what it has open, so that nothing new can be, whatever was closed meanwhile.
        with limited(front.pid, resource.RLIMIT_NOFILE, 3):
            before = worker(server).pid
            os.kill(before, signal.SIGKILL)
            wait_until(lambda: worker(server).pid != before, "the next worker")
            wait_until(
                lambda: not front.is_running() or "Too many open files" in server.log.read_text(),
                "the limit to be felt",
            )
        wait_until(lambda: is_ready(server.url), "the worker to be found")
        assert answered(server)


def test_an_http_process_that_stands_still_is_replaced(tmp_path: Path) -> None:
    """Stopped, or its loop held up for good: its clients would wait for ever."""
    with faulty_server(tmp_path, "--hang-after-s", "2") as server:
        front = http_process(server)
        front.send_signal(signal.SIGSTOP)
        wait_until(lambda: not front.is_running(), "it to be killed")
        wait_until(lambda: is_ready(server.url), "the next one")
        assert (
            "killing http-0, which does not respond: its main loop has not responded for more than 2 s"
            in (server.log.read_text())
        )
        assert answered(server)


def test_a_supervisor_that_was_stopped_for_a_while_kills_nobody(tmp_path: Path) -> None:
    """Time in which it could not look counts for nothing, and its children go on meanwhile."""
    with faulty_server(tmp_path, "--hang-after-s", "1") as server:
        before = worker(server).pid, http_process(server).pid
        server.supervisor.send_signal(signal.SIGSTOP)
        for _ in range(20):
            assert answered(server)
        server.supervisor.send_signal(signal.SIGCONT)
        for _ in range(20):
            assert answered(server)
        assert (worker(server).pid, http_process(server).pid) == before
        assert "hangs" not in server.log.read_text()


def test_a_server_whose_private_folder_is_removed_stops_and_says_so(tmp_path: Path) -> None:
    """Without it no process could be started again: that is found out at once, and not on the next crash."""
    with faulty_server(tmp_path) as server:
        folder = private_folder(server)
        shutil.rmtree(folder)
        assert server.supervisor.wait(120) == 1
        assert (
            f"stopped: the folder {folder} was removed while the server was running" in server.log.read_text()
        )


def test_processes_that_die_leave_no_files_and_no_zombies(tmp_path: Path) -> None:
    """However often they are replaced, the supervisor has as many files open as before."""
    with faulty_server(tmp_path, quick_restarts=True) as server:

        def kill_and_wait(number: int) -> None:
            for process, name in ((worker(server), "worker-0"), (http_process(server), "http-0")):
                process.kill()
                wait_until(lambda: not process.is_running(), "its end")  # noqa: B023
                wait_until(lambda: is_ready(server.url), "the next one")
                wait_until(
                    lambda: server.metric("trimvit_restarts_total", process=name) >= number,  # noqa: B023
                    "the restart to be counted",
                )

        kill_and_wait(1)
        before = descriptors(server.supervisor.pid)
        for number in range(2, 7):
            kill_and_wait(number)
        assert descriptors(server.supervisor.pid) <= before + 2
        everyone = psutil.Process(server.supervisor.pid).children(recursive=True)
        assert [child for child in everyone if child.status() == psutil.STATUS_ZOMBIE] == []
