"""Start a server for a benchmark, wait until it is ready, and stop it at the end."""

import contextlib
import re
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path

import psutil

PATIENCE_S = 300.0


@dataclass(frozen=True)
class Server:
    """A running server. ``pid``: the process ID of the supervisor. ``tls``: whether the port uses HTTPS."""

    pid: int
    port: int
    tls: bool = False


@contextmanager
def running(*flags: str, module: str = "app.cli") -> Iterator[Server]:
    """Run `trimvit serve` with these flags on a free port, and yield the server once /readyz returns 200.
    ``module``: the module to run instead of the command line. Raises RuntimeError with the log if the server
    does not start."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as sink:
            command = [sys.executable, "-m", module, "serve", "--port", "0", *flags]
            process = subprocess.Popen(command, stderr=sink)
        try:
            until = time.monotonic() + PATIENCE_S
            while (found := _address(log)) is None or not is_ready(*found):
                if time.monotonic() > until or process.poll() is not None:
                    raise RuntimeError(f"the server did not become ready: {log.read_text()}")
                time.sleep(0.1)
            yield Server(process.pid, *found)
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM, then SIGKILL if the process does not end within a minute."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def processes(supervisor: psutil.Process, title: str) -> list[psutil.Process]:
    """Return the supervisor's child processes whose title starts with ``title``."""
    children = supervisor.children(recursive=True)
    return [child for child in children if title_of(child).startswith(title)]


def title_of(process: psutil.Process) -> str:
    """Return the title of a process, or an empty string if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def cpu_seconds(supervisor: int) -> Counter[str]:
    """Return the CPU time (user and system) of the server's processes so far, by kind: the first word of
    their titles (`http`, `decode`, `supervisor`, ...)."""
    taken: Counter[str] = Counter()
    parent = psutil.Process(supervisor)
    for process in [parent, *parent.children(recursive=True)]:
        kind = title_of(process).removeprefix("trimvit: ").partition(" ")[0]
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            taken[kind] += times.user + times.system
    return taken


def _address(log: Path) -> tuple[int, bool] | None:
    """Return the port from the log, and whether it uses HTTPS; None if it is not logged yet."""
    found = re.search(r"listening on (https?)://[^:]+:(\d+)", log.read_text())
    return None if found is None else (int(found[2]), found[1] == "https")


def connect(port: int, *, tls: bool, timeout: float, source: str = "127.0.0.1") -> HTTPConnection:
    """Create a connection from ``source`` to a port on this machine. The certificate is not verified."""
    if not tls:
        return HTTPConnection("127.0.0.1", port, timeout=timeout, source_address=(source, 0))
    return HTTPSConnection("127.0.0.1", port, timeout=timeout, source_address=(source, 0), context=_anybody())


@cache
def _anybody() -> ssl.SSLContext:
    """Create a context that accepts any certificate. It is cached, and does not load the system's
    certificates, which would take longer than a handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def status_of(connection: HTTPConnection, path: str, body: bytes, headers: dict[str, str]) -> str:
    """Send a POST request, and return the status, or the name of the exception without a response. Closes the
    connection."""
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        response.read()
        return str(response.status)
    except (OSError, HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def is_ready(port: int, tls: bool = False) -> bool:
    """Whether /readyz on this port returns 200."""
    connection = connect(port, tls=tls, timeout=10)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
