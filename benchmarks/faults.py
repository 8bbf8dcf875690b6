"""Measure the effect of faults on clients, and leaks in a long run, with a real server over HTTP.

    python -m benchmarks.faults kills --photographs FOLDER [--seconds 60] [--every 10] [--output FILE.json]
    python -m benchmarks.faults soak --photographs FOLDER [--seconds 3600] [--every 1.7] [--output FILE.json]

kills: The worker is killed (-9) every ``--every`` seconds under a load at half the capacity. Reports requests
by outcome, latencies, the longest time without a response after each kill, and whether the server answered
each image exactly once.

soak: A mixed load (ratios, methods, broken images, clients that disconnect, short deadlines) at half the
capacity. For ten seconds of every minute the rate is three times as high, so that batches of all sizes occur.
Memory, open files and metric files of every process are sampled. The growth compares the medians of the first
and last fifth of the samples, after discarding a tenth as warm-up. For memory, it also compares the lowest
and highest samples of each minute, because the overall median depends on how long a burst takes to be
processed. The median of every tenth of the run shows when memory grew.
"""

import argparse
import json
import random
import re
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from itertools import pairwise, product
from pathlib import Path

import psutil

from benchmarks import machine
from benchmarks.server import processes, running, title_of
from models.bundled import BUNDLED_MODEL

CLIENTS = 16
MOST_WAITING = 512  # maximum number of concurrent requests of the load generator
PATIENCE_S = 60.0
MIXED = [
    f"keep_ratio={ratio}{method}"
    for ratio, method in product(
        (0.3, 0.5, 0.7, 0.9, 1.0), ("", "&criterion=mad", "&reducer=fuse", "&reducer=merge", "&mask=png")
    )
]
BURST, BURST_S, BURST_EVERY_S = 3.0, 10.0, 60.0  # soak: factor of the rate, duration, interval


class Target:
    """A running server. Many threads can send requests at once."""

    def __init__(self, supervisor: int, port: int) -> None:
        self.supervisor = psutil.Process(supervisor)
        self._port = port
        self._of_thread = threading.local()

    def post(self, query: str, body: bytes, *, leave_after_s: float | None = None) -> int:
        """Send an image and return the status, or 0 without a response. ``leave_after_s``: disconnect after
        this time."""
        return self.ask(query, body, leave_after_s=leave_after_s)[0]

    def ask(self, query: str, body: bytes, *, leave_after_s: float | None = None) -> tuple[int, str]:
        """Send an image and return the status as `post` does, with the problem type of an error response, or
        the name of the exception if there was no response."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=leave_after_s or PATIENCE_S)
        try:
            connection.request("POST", f"/v1/classify?{query}", body, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            answer = response.read()
            if response.status == 200:
                return 200, ""
            return response.status, json.loads(answer)["type"].rpartition(":")[2]
        except (OSError, HTTPException) as error:
            return 0, type(error).__name__
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metric(self, sample: str) -> float:
        found = re.search(rf"^{re.escape(sample)} (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else 0.0

    def capacity(self, photographs: list[bytes], queries: list[str], seconds: float) -> float:
        """Measure images/s with enough clients to keep the server busy. Photographs and queries are drawn at
        random."""
        until = time.perf_counter() + seconds

        def ask(client: int) -> int:
            draw, done = random.Random(client), 0
            while time.perf_counter() < until:
                done += self.post(draw.choice(queries), draw.choice(photographs)) == 200
            return done

        with ThreadPoolExecutor(CLIENTS) as pool:
            return sum(pool.map(ask, range(CLIENTS))) / seconds


@contextmanager
def server(model: str, *flags: str) -> Iterator[Target]:
    with running("--model", model, *flags) as started:
        yield Target(started.pid, started.port)


def kills(options: argparse.Namespace, photographs: list[bytes]) -> dict[str, object]:
    """Send a load at half the capacity, and kill the worker regularly."""
    with server(options.model) as target:
        query = f"keep_ratio=0.5&deadline_ms={options.deadline_ms}"
        capacity = target.capacity(photographs, [query], options.capacity_s)
        answered_before = target.metric('trimvit_images_total{outcome="answered"}')
        started = time.perf_counter()
        killed: list[float] = []
        outcomes: list[tuple[int, str, float, float]] = []  # status, problem, sent, done

        def ask(number: int) -> None:
            sent = time.perf_counter()
            status, problem = target.ask(query, photographs[number % len(photographs)])
            outcomes.append((status, problem, sent, time.perf_counter()))

        with ThreadPoolExecutor(MOST_WAITING) as pool:
            number = 0
            while (now := time.perf_counter() - started) < options.seconds:
                if now > (len(killed) + 1) * options.every:
                    for worker in processes(target.supervisor, "trimvit: worker"):
                        worker.kill()
                    killed.append(time.perf_counter())
                pool.submit(ask, number)
                number += 1
                time.sleep(max(0.0, started + number / (capacity / 2) - time.perf_counter()))
        by_outcome = Counter(f"{status} {problem}".strip() for status, problem, _, _ in outcomes)
        latencies = sorted(done - sent for status, _, sent, done in outcomes if status == 200)
        answers = [done for status, _, _, done in outcomes if status == 200]
        answered = target.metric('trimvit_images_total{outcome="answered"}') - answered_before
        return {
            "capacity_images_per_s": round(capacity, 1),
            "requests": len(outcomes),
            "kills": len(killed),
            "restarts": target.metric('trimvit_restarts_total{process="worker-0"}'),
            "deadline_ms": options.deadline_ms,
            "by_outcome": dict(sorted(by_outcome.items())),
            "images_sent_again": target.metric("trimvit_images_sent_again_total"),
            "answered_by_the_server_less_received": answered - len(answers),
            "without_an_answer_s": [
                round(silence, 2) for silence in _silences(killed, answers, time.perf_counter())
            ],
            "latency_s": {
                name: round(latencies[min(len(latencies) - 1, int(share * len(latencies)))], 3)
                for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
            },
        }


def _silences(kills: list[float], answers: list[float], end: float) -> list[float]:
    """Return, for each kill, the longest time without a response until the next kill or the end."""
    longest = []
    for begin, until in zip(kills, [*kills[1:], end], strict=True):
        times = [begin, *sorted(done for done in answers if begin < done < until)]
        longest.append(max((later - earlier for earlier, later in pairwise(times)), default=until - begin))
    return longest


def soak(options: argparse.Namespace, photographs: list[bytes]) -> dict[str, object]:
    """Send a mixed load, and sample the resources of every process."""
    with server(options.model, "--http-workers", "2") as target:
        capacity = target.capacity(photographs, MIXED, options.capacity_s)
        rate = options.rate or capacity / 2
        started = time.perf_counter()
        outcomes: Counter[str] = Counter()
        samples: dict[str, list[dict[str, float]]] = defaultdict(list)

        def count(outcome: tuple[int, str]) -> None:
            outcomes[" ".join(map(str, outcome)).strip()] += 1

        def ask(number: int) -> None:
            draw = random.Random(number)
            photograph = photographs[number % len(photographs)]
            match draw.choices(("usual", "broken", "hurried", "gone"), (90, 4, 3, 3))[0]:
                case "broken":
                    count(target.ask("", photograph[: draw.randrange(len(photograph))]))
                case "hurried":
                    count(target.ask(f"deadline_ms={draw.randint(1, 50)}", photograph))
                case "gone":
                    target.post("", photograph, leave_after_s=draw.uniform(0.001, 0.05))
                    outcomes["the client left"] += 1
                case _:
                    count(target.ask(draw.choice(MIXED), photograph))

        def sample() -> None:
            target.metric("trimvit_worker_up")  # scrape the metrics as Prometheus does
            for process in (target.supervisor, *target.supervisor.children(recursive=True)):
                title = title_of(process) or str(process.pid)
                with process.oneshot():
                    samples[title].append(
                        {
                            "mib": process.memory_info().rss / 2**20,
                            "files": process.num_fds(),
                            "threads": process.num_threads(),
                        }
                    )
            samples["metric files"].append({"files": len(_metric_files(target.supervisor))})

        with ThreadPoolExecutor(MOST_WAITING) as pool:
            number, sampled, due = 0, 0, 0.0
            while (now := time.perf_counter() - started) < options.seconds:
                if now > sampled * options.every:
                    sample()
                    sampled += 1
                pool.submit(ask, number)
                number += 1
                due += 1 / (rate * BURST if due % BURST_EVERY_S < BURST_S else rate)
                time.sleep(max(0.0, started + due - time.perf_counter()))
        return {
            "capacity_images_per_s": round(capacity, 1),
            "rate_between_bursts": round(rate, 1),
            "seconds": round(now, 1),
            "requests": number,
            "by_outcome": dict(sorted(outcomes.items())),
            "restarts": target.metric('trimvit_restarts_total{process="worker-0"}'),
            "samples": sampled,
            "growth": {name.strip(): _growth(rows) for name, rows in samples.items()},
            "growth_of_mib_by_minute": {
                name.strip(): {
                    what: _growth(extremes)["mib"]
                    for what, of_minute in (("lowest", min), ("highest", max))
                    if (extremes := _of_minutes([row["mib"] for row in rows], of_minute, options.every))
                }
                for name, rows in samples.items()
                if "mib" in rows[0]
            },
            "mib_by_tenth": {
                name.strip(): _tenths([row["mib"] for row in rows])
                for name, rows in samples.items()
                if "mib" in rows[0]
            },
        }


def _metric_files(supervisor: psutil.Process) -> list[Path]:
    """List the files in the metrics folder. It is found by the file that the supervisor has open there."""
    for file in supervisor.open_files():
        if (folder := Path(file.path).parent).name == "metrics":
            return list(folder.iterdir())
    return []


def _growth(rows: list[dict[str, float]]) -> dict[str, object]:
    """Return the medians of the first and last fifth of each quantity, and the change in percent. The first
    tenth is discarded."""
    settled = rows[len(rows) // 10 :]
    part = max(1, len(settled) // 5)
    result: dict[str, object] = {}
    for name in rows[0]:
        first, last = (
            statistics.median(row[name] for row in some) for some in (settled[:part], settled[-part:])
        )
        result[name] = {
            "first": round(first, 1),
            "last": round(last, 1),
            "change_%": round(100 * (last / first - 1), 2) if first else None,
        }
    return result


def _of_minutes(
    values: list[float], extreme: Callable[[list[float]], float], every_s: float
) -> list[dict[str, float]]:
    """Return the lowest or highest value of each complete minute, as rows for `_growth`."""
    minute = round(60 / every_s)
    return [
        {"mib": extreme(values[first : first + minute])}
        for first in range(0, len(values) - minute + 1, minute)
    ]


def _tenths(values: list[float]) -> list[float]:
    """Return the median of each tenth of the run."""
    edges = [len(values) * tenth // 10 for tenth in range(11)]
    return [
        round(statistics.median(values[first:last]), 1) for first, last in pairwise(edges) if last > first
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("kills", "soak"))
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--model", default=BUNDLED_MODEL)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--every", type=float, help="seconds between two kills (10) or samples (1.7)")
    parser.add_argument("--deadline-ms", type=int, default=30_000)
    parser.add_argument("--capacity-s", type=float, default=10.0, help="time to find out the capacity")
    parser.add_argument(
        "--rate", type=float, help="requests a second of the soak between bursts (half the capacity)"
    )
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.seconds is None:
        options.seconds = 60.0 if options.what == "kills" else 3600.0
    if options.every is None:
        # Memory is returned to the system every ten seconds (app/processes/heap.py). Samples must not be in
        # step with that, or they would always see the same phase.
        options.every = 10.0 if options.what == "kills" else 1.7
    photographs = [path.read_bytes() for path in sorted(options.photographs.glob("*.[jJ][pP]*"))]
    run = kills if options.what == "kills" else soak
    result = {"machine": machine.describe(), options.what: run(options, photographs)}
    text = json.dumps(result, indent=2)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
