"""A real server in processes of its own, as `trimvit serve` starts it."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.server import end, processes

# A client for each request would read the certificates each time, which takes 22 ms. Connections are not
# kept, for servers here may not live long.
CLIENT = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))
TRIMVIT = Path(sys.executable).parent / "trimvit"
READY_WITHIN_S = 120

# In it a server times single images only and makes no kernels ahead, which is a quarter of what a start
# takes. Flags may ask for more.
ENVIRONMENT = {"TRIMVIT_WARM_UP_S": "0.2"}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]  # (name, labels) -> value


@dataclass(frozen=True)
class Server:
    """A running server: its supervisor, its address and its log file."""

    supervisor: subprocess.Popen[bytes]
    url: str
    log: Path
    grpc: str = ""  # host and port, where it has one

    def processes(self, title: str) -> list[psutil.Process]:
        """Its processes whose title begins so."""
        return processes(psutil.Process(self.supervisor.pid), title)

    def only_process(self, title: str) -> psutil.Process:
        """Its one process whose title begins so, once there is one only."""
        found: list[psutil.Process] = []

        def is_one() -> bool:
            found[:] = self.processes(title)  # it may be gone at the next look
            return len(found) == 1

        wait_until(is_one, f"one process of {title!r}")
        return found[0]

    def samples(self) -> Samples:
        """Every sample of /metrics."""
        return samples(self.url)

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample of /metrics; 0 where there is none."""
        return self.samples().get((name, frozenset(labels.items())), 0.0)


def samples(url: str) -> Samples:
    """Every sample of a server's /metrics."""
    page = CLIENT.get(f"{url}/metrics", timeout=60).raise_for_status().text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def wait_until(condition: Callable[[], bool], what: str, within_s: float = READY_WITHIN_S) -> None:
    """Return when the condition holds; fail the test if it does not in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {within_s:g} s in vain: {what}")
        time.sleep(0.05)


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def is_ready(url: str) -> bool:
    try:
        return CLIENT.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def running_server(
    folder: Path,
    *flags: str,
    program: Sequence[str | Path] = (TRIMVIT,),
    port: int = 0,
    started_in: Path | None = None,
) -> Iterator[Server]:
    """A server on a free port, ready; stopped at the end however the test went."""
    log = folder / "server.log"
    environment = {**ENVIRONMENT, **os.environ}
    with log.open("wb") as sink:
        command = [*program, "serve", "--port", str(port), *flags]
        supervisor = subprocess.Popen(command, stderr=sink, cwd=started_in, env=environment)
    try:
        wait_until(
            lambda: "listening on" in log.read_text() or supervisor.poll() is not None, "the server to listen"
        )
        found = re.search(r"listening on (https?://[^\s\"]+)", log.read_text())
        assert found is not None, f"the server ended before it listened: {log.read_text()}"
        grpc = re.search(r"gRPC on ([^\s\"]+)", log.read_text())
        server = Server(supervisor, found[1], log, "" if grpc is None else grpc[1])
        wait_until(lambda: is_ready(server.url), f"the server to be ready; its log:\n{log.read_text()}")
        yield server
    finally:
        end(supervisor)
        sys.stdout.write(log.read_text())  # shown with a failing test
