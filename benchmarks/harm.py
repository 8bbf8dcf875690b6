"""Measure how unusual or hostile clients affect other clients of a real server.

    python -m benchmarks.harm [LOAD ...] --photographs FOLDER [--model MODEL] [--output FILE.json]

Loads run one after another, each against a new server that is idle first. While a load runs, one process
requests /livez continuously, and a polite client at another address sends photographs one at a time. Reports
the responses to the load, the latencies of /livez and of the polite client, and how far the peak memory of
each process rose above its idle level (the kernel's VmHWM, which includes peaks between samples). The limits
are --max-bodies-bytes for memory and 100 ms for the slowest /livez.

LOAD is one or more of these (default: all):

inflating    100 concurrent requests, each 32 KB of gzip that expands to 33 MB of pixels
forms        16 concurrent forms of 31 MB
documents    16 concurrent JSON documents of 31 MB of base64
slow-forms   4 forms of 64 photographs over slow connections; each takes 45 s, beyond the deadline of 30 s
masks        2 requests for 64 photographs with a mask image of every stage
text-chunks  4 PNGs of 30 MB with two million text chunks each
silent-tls   4,000 connections to the TLS port that send nothing
"""

import argparse
import gzip
import io
import json
import multiprocessing
import resource
import select
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from multiprocessing.synchronize import Event
from pathlib import Path

import psutil
from PIL import Image

from app.settings.settings import Settings
from benchmarks import machine
from benchmarks.report import write
from benchmarks.server import Server, connect, running, status_of, title_of
from models.bundled import BUNDLED_MODEL

LIVEZ_LIMIT_S = 0.1
POLITE_ADDRESS = "127.0.0.2"  # without API keys, each address is a caller with an equal share
POLITE_PAUSE_S = 0.1
PATIENCE_S = 120.0
RESTING_S = 3.0
SLOW_FORM_S = 45.0
PATIENT = "deadline_ms=110000"  # so that no image is rejected only because of a long queue
FILES = 10_000
MIB = 2**20

Outcome = str


@dataclass(frozen=True)
class Target:
    """A running server."""

    server: Server
    photographs: list[bytes]
    model: str

    def connection(self, address: str = "127.0.0.1") -> HTTPConnection:
        """Create a connection from this source address."""
        return connect(self.server.port, tls=self.server.tls, timeout=PATIENCE_S, source=address)

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> Outcome:
        """Send a request and return the status, or the name of the exception without a response."""
        return status_of(self.connection(), path, body, headers)


Load = Callable[[Target], list[Outcome]]


def at_once(number: int, ask: Callable[[], Outcome]) -> list[Outcome]:
    """Call ``ask`` in ``number`` threads that start at the same time."""
    ready = threading.Barrier(number)

    def one(_: int) -> Outcome:
        ready.wait()
        return ask()

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number)))


def inflating(target: Target) -> list[Outcome]:
    side = 3344
    size = side * side * 3
    tensor = {
        "name": "pixels",
        "shape": [1, side, side, 3],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": size},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    body = gzip.compress(head + bytes(size))
    headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": str(len(head))}
    return at_once(100, lambda: target.post(f"/v2/models/{target.model}/infer", body, headers))


BOUNDARY = "a-boundary-that-no-photograph-has"


def form(images: list[bytes]) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'.encode()
    return b"".join(head + image + b"\r\n" for image in images) + f"--{BOUNDARY}--\r\n".encode()


FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def large_images(photographs: list[bytes], most_bytes: int) -> list[bytes]:
    """Return 60 photographs with about ``most_bytes`` in total. Each is padded with zeros or truncated to the
    same size."""
    each = most_bytes // 60
    return [photographs[place % len(photographs)].ljust(each, b"\0")[:each] for place in range(60)]


def forms(target: Target) -> list[Outcome]:
    body = form(large_images(target.photographs, 31 * 1000 * 1000))
    return at_once(16, lambda: target.post(f"/v1/classify?keep_ratio=0.3&{PATIENT}", body, FORM))


def documents(target: Target) -> list[Outcome]:
    images = large_images(target.photographs, 23 * 1000 * 1000)
    body = json.dumps({"images": [{"image": b64encode(image).decode()} for image in images]}).encode()
    headers = {"Content-Type": "application/json"}
    return at_once(16, lambda: target.post(f"/v1/classify?keep_ratio=0.3&{PATIENT}", body, headers))


def slow_forms(target: Target) -> list[Outcome]:
    photographs = [target.photographs[place % len(target.photographs)] for place in range(64)]
    body = form(photographs)
    rate, piece = len(body) / SLOW_FORM_S, 30_000

    def ask() -> Outcome:
        connection = target.connection()
        try:
            connection.putrequest("POST", "/v1/classify")
            connection.putheader("Content-Type", FORM["Content-Type"])
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            assert connection.sock is not None
            started = time.perf_counter()
            for place in range(0, len(body), piece):
                connection.sock.sendall(body[place : place + piece])
                time.sleep(max(0.0, started + (place + piece) / rate - time.perf_counter()))
                if _readable(connection.sock):
                    break
            response = connection.getresponse()
            response.read()
            return f"{response.status} after {time.perf_counter() - started:.0f} s"
        except (OSError, HTTPException) as error:
            return type(error).__name__
        finally:
            connection.close()

    return at_once(4, ask)


def _readable(connection: socket.socket) -> bool:
    """Whether there is data to read, or the connection is closed."""
    poller = select.poll()  # select does not support file descriptors above 1023
    poller.register(connection, select.POLLIN)
    return bool(poller.poll(0))


def masks(target: Target) -> list[Outcome]:
    photographs = [target.photographs[place % len(target.photographs)] for place in range(64)]
    body = form(photographs)
    path = f"/v1/classify?keep_ratio=0.3&mask=png&mask_stages=true&{PATIENT}"
    return at_once(2, lambda: target.post(path, body, FORM))


def text_chunks(target: Target) -> list[Outcome]:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (90, 60, 30)).save(buffer, "PNG")
    picture = buffer.getvalue()
    head = 8 + 25  # the signature and IHDR
    body = picture[:head] + chunk(b"tEXt", b"k\0v") * 2_000_000 + picture[head:]
    return at_once(4, lambda: target.post("/v1/classify", body, {"Content-Type": "image/png"}))


def silent_tls(target: Target) -> list[Outcome]:
    connections = []
    outcomes: list[Outcome] = []
    for _ in range(4000):
        try:
            connections.append(socket.create_connection(("127.0.0.1", target.server.port), timeout=5))
        except OSError as error:
            outcomes.append(type(error).__name__)
    until = time.monotonic() + 40
    still = connections
    while still and time.monotonic() < until:
        time.sleep(1)
        still = [connection for connection in still if not _closed(connection)]
    outcomes += ["closed by the server"] * (len(connections) - len(still)) + ["open after 40 s"] * len(still)
    for connection in connections:
        connection.close()
    return outcomes


def _closed(connection: socket.socket) -> bool:
    try:
        return _readable(connection) and connection.recv(1) == b""
    except OSError:
        return True


LOADS: dict[str, Load] = {
    "inflating": inflating,
    "forms": forms,
    "documents": documents,
    "slow-forms": slow_forms,
    "masks": masks,
    "text-chunks": text_chunks,
    "silent-tls": silent_tls,
}


# --- watching ----------------------------------------------------------------------------------------
def _watch(target: Target, path: str, body: bytes | None, pause_s: float, over: Event, results: str) -> None:
    """Send requests in a loop from a separate address, and write the latencies to a file. Runs in a separate
    process, so that work of the load generator does not add to the measured latency."""
    seconds: list[float] = []
    outcomes: Counter[str] = Counter()
    while not over.is_set():
        started = time.perf_counter()
        connection = target.connection(POLITE_ADDRESS)
        try:
            connection.request("GET" if body is None else "POST", path, body)
            response = connection.getresponse()
            response.read()
            outcomes[str(response.status)] += 1
        except (OSError, HTTPException) as error:
            outcomes[type(error).__name__] += 1
        finally:
            connection.close()
        seconds.append(time.perf_counter() - started)
        over.wait(pause_s)
    Path(results).write_text(json.dumps({"seconds": seconds, "outcomes": outcomes}))


@contextmanager
def watching(target: Target, path: str, body: bytes | None, pause_s: float) -> Iterator[dict[str, object]]:
    """Run a watcher during the block. The yielded dictionary has its results after the block has ended."""
    spawn = multiprocessing.get_context("spawn")
    over = spawn.Event()
    seen: dict[str, object] = {}
    with tempfile.NamedTemporaryFile() as results:
        watcher = spawn.Process(target=_watch, args=(target, path, body, pause_s, over, results.name))
        watcher.start()
        try:
            yield seen
        finally:
            over.set()
            watcher.join()
        found = json.loads(Path(results.name).read_text())
    seconds = sorted(found["seconds"])
    seen.update(
        outcomes=found["outcomes"],
        median_ms=round(1000 * statistics.median(seconds), 1),
        p99_ms=round(1000 * seconds[int(0.99 * (len(seconds) - 1))], 1),
        highest_ms=round(1000 * seconds[-1], 1),
    )


def server_processes(target: Target) -> dict[str, int]:
    """Return the process IDs of the server's child processes by their titles."""
    children = psutil.Process(target.server.pid).children(recursive=True)
    return {f"{title_of(child).strip()} [{number}]": child.pid for number, child in enumerate(children)}


def memory_bytes(pid: int, field: str) -> int:
    """Return a memory field of a process's status: VmRSS, or VmHWM for the peak since `reset_highest`. 0 if
    the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field))


def reset_highest(pid: int) -> None:
    """Reset VmHWM to the current memory (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def run(name: str, target: Target) -> dict[str, object]:
    """Run one load, after a warm-up and an idle period of the server."""
    for photograph in target.photographs[:8]:
        assert target.post("/v1/classify?keep_ratio=0.5", photograph, {}) == "200"
    time.sleep(RESTING_S)
    pids = server_processes(target)
    resting = {title: memory_bytes(pid, "VmRSS") for title, pid in pids.items()}
    for pid in pids.values():
        reset_highest(pid)
    polite_path = "/v1/classify?keep_ratio=0.5"
    with (
        watching(target, "/livez", None, 0.005) as livez,
        watching(target, polite_path, target.photographs[0], POLITE_PAUSE_S) as polite,
    ):
        time.sleep(2.0)  # wait until the watchers have started
        started = time.perf_counter()
        outcomes = LOADS[name](target)
        seconds = time.perf_counter() - started
    rise = {
        title: round((memory_bytes(pid, "VmHWM") - resting[title]) / MIB)
        for title, pid in pids.items()
        if psutil.pid_exists(pid)
    }
    limit = Settings.model_fields["max_bodies_bytes"].default / MIB
    highest = livez["highest_ms"]
    assert isinstance(highest, float)
    return {
        "load": name,
        "outcomes": dict(sorted(Counter(outcomes).items())),
        "seconds": round(seconds, 1),
        "livez": livez,
        "polite_client": polite,
        "memory_rise_mib": rise,
        "processes_replaced": len(pids.keys() - rise.keys()),
        "memory_met": max(rise.values()) <= limit,
        "livez_met": highest <= 1000 * LIVEZ_LIMIT_S,
    }


@contextmanager
def certificate() -> Iterator[list[str]]:
    """Create a self-signed certificate, and yield the flags of a server that uses it."""
    with tempfile.TemporaryDirectory() as folder:
        chain, key = Path(folder) / "chain.pem", Path(folder) / "key.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-subj", "/CN=localhost", "-keyout", str(key), "-out", str(chain)),
            ],
            check=True,
            capture_output=True,
        )
        yield ["--tls-certificate", str(chain), "--tls-key", str(key)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("loads", nargs="*", metavar="LOAD", default=list(LOADS))
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--model", default=BUNDLED_MODEL)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if unknown := set(options.loads) - set(LOADS):
        parser.error(f"there is no load {', '.join(sorted(unknown))}; choose from {', '.join(LOADS)}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard), hard))
    photographs = [path.read_bytes() for path in sorted(options.photographs.glob("*.[jJ][pP]*"))]
    name = Path(options.model).stem if Path(options.model).suffix else options.model
    results = []
    for load in options.loads:
        with certificate() as flags:
            own = flags if load == "silent-tls" else []
            with running("--model", options.model, *own) as server:
                result = run(load, Target(server, photographs, name))
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        sys.stdout.flush()
        results.append(result)
    if options.output is not None:
        write(options.output, {"machine": machine.describe(), "results": results})


if __name__ == "__main__":
    main()
