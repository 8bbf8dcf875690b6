"""What a server does under ten times the load that it can sustain. Real processes, over HTTP.

    python -m benchmarks.load --photographs FOLDER [--seconds 60] [--times 10] [--output FILE.json]

First the peak: as many answers a second as 16 clients get that always ask again. Then images at random times,
ten times as many a second, each with a deadline: once as they are, once with a floor that allows brown-out.
Reported are goodput (answers within their deadline, a second) as a share of the peak, the 99th percentile of
the answered images' latency, and how soon the others are refused. Latency counts from when an image was due.
The load generator runs on the same cores, and what it takes the server lacks: its CPU time is reported.
"""

import argparse
import json
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from app.commands.load import poisson_arrivals
from app.settings import BUNDLED_MODEL
from benchmarks import machine
from benchmarks.server import running

CLIENTS = 16
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Ended:
    """An image's status (0: no answer), when it was due and when it ended, from the start of the load."""

    status: int
    due_s: float
    done_s: float


class Clients:
    """Connections with keep-alive, one a thread."""

    def __init__(self, port: int, query: str, photographs: list[bytes]) -> None:
        self._port = port
        self._path = f"/v1/classify?{query}"
        self._photographs = photographs
        self._own = threading.local()

    def post(self, number: int) -> int:
        """The status; 0 where no answer came."""
        connection = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
        body = self._photographs[number % len(self._photographs)]
        try:
            connection.request("POST", self._path, body, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            response.read()
            return response.status
        except (OSError, HTTPException):
            connection.close()
            return 0


def peak(clients: Clients, seconds: float) -> float:
    """Answers a second."""
    until = time.perf_counter() + seconds

    def ask(client: int) -> int:
        answered = 0
        while time.perf_counter() < until:
            answered += clients.post(client + answered) == 200
        return answered

    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(ask, range(CLIENTS))) / seconds


def flood(clients: Clients, rate: float, seconds: float, at_once: int, seed: int) -> list[Ended]:
    """Send ``rate`` images a second at random times from ``at_once`` threads."""
    due: SimpleQueue[tuple[int, float] | None] = SimpleQueue()
    started = time.perf_counter()

    def work() -> list[Ended]:
        ended = []
        while (image := due.get()) is not None:
            number, due_s = image
            status = clients.post(number)
            ended.append(Ended(status, due_s, time.perf_counter() - started))
        return ended

    with ThreadPoolExecutor(at_once) as pool:
        workers = [pool.submit(work) for _ in range(at_once)]
        for number, due_s in enumerate(poisson_arrivals(rate, random.Random(seed))):
            if due_s >= seconds:
                break
            time.sleep(max(0.0, started + due_s - time.perf_counter()))
            due.put((number, due_s))
        for _ in workers:
            due.put(None)
        return [each for worker in workers for each in worker.result()]


def figures(ended: list[Ended], seconds: float, deadline_s: float, peak_rate: float) -> dict[str, object]:
    """What the flood came to."""
    latency = np.array([each.done_s - each.due_s for each in ended])
    answered = np.array([each.status == 200 for each in ended])
    in_time = int((answered & (latency <= deadline_s)).sum())
    rows: dict[str, object] = {
        "sent_per_s": round(len(ended) / seconds, 1),
        "by_status": dict(Counter(str(each.status) for each in ended)),
        "goodput_per_s": round(in_time / seconds, 2),
        "share_of_peak": round(in_time / seconds / peak_rate, 3),
    }
    for name, which in (("answered", answered), ("refused", ~answered)):
        if which.any():
            p50, p95, p99 = np.quantile(latency[which], (0.5, 0.95, 0.99)) * 1000
            rows[f"{name}_ms"] = {"p50": round(p50, 1), "p95": round(p95, 1), "p99": round(p99, 1)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True, help="folder of images")
    parser.add_argument("--model", default=BUNDLED_MODEL)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each flood")
    parser.add_argument("--times", type=float, default=10.0, help="the peak, sent")
    parser.add_argument("--deadline-ms", type=int, default=1000, help="of each image")
    parser.add_argument("--floor", type=float, default=0.3, help="min_keep_ratio of the second flood")
    parser.add_argument("--at-once", type=int, default=256, help="threads that send")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    photographs = [path.read_bytes() for path in sorted(options.photographs.iterdir())]
    deadline = f"deadline_ms={options.deadline_ms}"
    report: dict[str, object] = {
        "command": "python -m benchmarks.load",
        "machine": machine.describe(),
        "options": {key: value for key, value in vars(options).items() if not isinstance(value, Path)},
    }
    with running("--model", options.model) as server:
        calm = Clients(server.port, deadline, photographs)
        peak(calm, 5.0)  # the predictions settle
        peak_rate = peak(calm, 20.0)
        report["peak_per_s"] = round(peak_rate, 2)
        for name, query in (
            ("as they are", deadline),
            ("with brown-out", f"{deadline}&min_keep_ratio={options.floor}"),
        ):
            cpu = time.process_time()
            flooded = Clients(server.port, query, photographs)
            ended = flood(flooded, options.times * peak_rate, options.seconds, options.at_once, seed=0)
            rows = figures(ended, options.seconds, options.deadline_ms / 1000, peak_rate)
            rows["generator_cores"] = round((time.process_time() - cpu) / options.seconds, 2)
            report[name] = rows
            print(json.dumps({name: rows}, indent=1), flush=True)
            time.sleep(5)
    print(json.dumps({"peak_per_s": report["peak_per_s"]}))
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
