"""A server of its own for a benchmark: started, ready, and stopped at the end."""

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
    """The supervisor's process, the port, and whether it speaks HTTPS."""

    pid: int
    port: int
    tls: bool = False


@contextmanager
def running(*flags: str, module: str = "app.cli") -> Iterator[Server]:
    """`trimvit serve` with these flags on a free port, once /readyz says 200. Raises RuntimeError with its
    log where it does not come up. ``module``: what is run in place of the command line."""
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
    """SIGTERM, and SIGKILL where that does not end it in a minute."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def processes(supervisor: psutil.Process, title: str) -> list[psutil.Process]:
    """The supervisor's processes whose title begins so."""
    children = supervisor.children(recursive=True)
    return [child for child in children if title_of(child).startswith(title)]


def title_of(process: psutil.Process) -> str:
    """Empty where it has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def cpu_seconds(supervisor: int) -> Counter[str]:
    """User and system time that the server's processes have taken so far, by kind: the first word of their
    titles (`http`, `decode`, `supervisor`, ...)."""
    taken: Counter[str] = Counter()
    parent = psutil.Process(supervisor)
    for process in [parent, *parent.children(recursive=True)]:
        kind = title_of(process).removeprefix("trimvit: ").partition(" ")[0]
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            taken[kind] += times.user + times.system
    return taken


def _address(log: Path) -> tuple[int, bool] | None:
    """The port, and whether it speaks HTTPS; None until the log says so."""
    found = re.search(r"listening on (https?)://[^:]+:(\d+)", log.read_text())
    return None if found is None else (int(found[2]), found[1] == "https")


def connect(port: int, *, tls: bool, timeout: float, source: str = "127.0.0.1") -> HTTPConnection:
    """A connection to the server at that port, whose certificate is not looked at, from this address."""
    if not tls:
        return HTTPConnection("127.0.0.1", port, timeout=timeout, source_address=(source, 0))
    return HTTPSConnection("127.0.0.1", port, timeout=timeout, source_address=(source, 0), context=_anybody())


@cache
def _anybody() -> ssl.SSLContext:
    """Takes any certificate. Made once, and without the system's certificates, whose reading takes longer
    than a handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def status_of(connection: HTTPConnection, path: str, body: bytes, headers: dict[str, str]) -> str:
    """The status that a POST is answered with, or the name of what came in its place. The connection is
    closed."""
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
    """Whether /readyz of the server at that port says 200."""
    connection = connect(port, tls=tls, timeout=10)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
