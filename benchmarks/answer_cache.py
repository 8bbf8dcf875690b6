"""Measure the latency of a response from the answer cache, compared with a computed one.

    python -m benchmarks.answer_cache --photographs FOLDER [--rounds 5] [--output FILE.json] [--model ...]

There is one client with one connection. In each round, every photograph is sent twice: the first response is
computed, the second comes from the cache. Each round has its own seed, so that it computes again. Then the
worker is killed. When its replacement has loaded the model, each photograph is sent twice again, to measure
hits after a reload. The labels of cached responses are compared with the computed ones.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from pathlib import Path

import psutil

from benchmarks import machine
from benchmarks.report import spread
from benchmarks.server import Server, is_ready, processes, running
from models.bundled import BUNDLED_MODEL

CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Sample:
    """A response: the latency for the client, whether it came from the cache, and its labels."""

    seconds: float
    cached: bool
    labels: str


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--model", default=BUNDLED_MODEL)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    files = [path.read_bytes() for path in sorted(options.photographs.iterdir())]
    with running("--model", options.model, "--answer-cache-bytes", str(CACHE_BYTES)) as server:
        before = [sample for number in range(options.rounds) for sample in both(server, files, number)]
        load_again(server)
        after = both(server, files, 0)
    report = {
        "machine": machine.describe(),
        "photographs": len(files),
        "computed_ms": milliseconds([each for each in before if not each.cached]),
        "hit_ms": milliseconds([each for each in before if each.cached]),
        "hit_after_reload_ms": milliseconds([each for each in after if each.cached]),
    }
    print(json.dumps(report, indent=2))
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=2) + "\n")


def both(server: Server, files: list[bytes], number: int) -> list[Sample]:
    """Send each photograph twice, with the number of the round as the seed."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=300)
    path = f"/v1/classify?keep_ratio=0.5&seed={number}"
    samples = []
    for file in files:
        pair = [ask(connection, path, file) for _ in range(2)]
        if not pair[1].cached or pair[0].labels != pair[1].labels:
            raise RuntimeError(f"the second answer is not the first one's: {pair}")
        samples += pair
    connection.close()
    return samples


def ask(connection: HTTPConnection, path: str, file: bytes) -> Sample:
    began = time.perf_counter()
    connection.request("POST", path, file)
    response = connection.getresponse()
    body = response.read()
    seconds = time.perf_counter() - began
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {body[:300]!r}")
    (result,) = json.loads(body)["results"]
    return Sample(seconds, result.get("cached", False), json.dumps(result["labels"]))


def load_again(server: Server) -> None:
    """Kill the worker and wait until its replacement is ready."""
    supervisor = psutil.Process(server.pid)
    (worker,) = processes(supervisor, "trimvit: worker")
    worker.kill()
    psutil.wait_procs([worker], 60)
    until = time.monotonic() + 300
    while not (
        any(each.pid != worker.pid for each in processes(supervisor, "trimvit: worker"))
        and is_ready(server.port)
    ):
        if time.monotonic() > until:
            raise RuntimeError("no worker came up again")
        time.sleep(0.05)


def milliseconds(samples: list[Sample]) -> dict[str, object]:
    """Return the median and spread of the latencies in milliseconds."""
    return {**asdict(spread([each.seconds * 1000 for each in samples])), "answers": len(samples)}


if __name__ == "__main__":
    main()
