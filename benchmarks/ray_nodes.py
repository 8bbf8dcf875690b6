"""Measure the effect on clients when a node of a Ray cluster fails, and the time until throughput recovers.

    python -m benchmarks.ray_nodes --photographs FOLDER [--ends killed,silent] [--output FILE.json]

The cluster runs on this machine only (`ray.cluster_utils`): a head node with the proxy, two nodes with a
replica on one CPU each, and a spare node. Clients send requests in a closed loop. After ``--steady`` seconds,
a node with a replica fails. ``--steady`` seconds after the recovery, a spare node is added for the next
failure. ``killed``: all its processes are killed (-9). ``silent``: they are frozen, so that no connection
breaks and Ray must detect the failure. Reports for each failure: requests by outcome, how many were retried
on another replica, when the replacement on the spare node answered, and images/s before, during and after.
Needs the extra ``ray``.
"""

import argparse
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from benchmarks import machine
from benchmarks.photographs import image_files
from benchmarks.ray_cluster import RayCluster, ray_cluster, running_on_ray
from benchmarks.server import status_of

CLIENTS = 8
KEEP_RATIO = 1.0  # so that the workers limit the throughput, not the single proxy
DEADLINE_S = 300
RECOVERED_WITHIN_S = 300.0
BIN_S = 5.0
ENDS = ("killed", "silent")


@dataclass(frozen=True, slots=True)
class Ended:
    """A finished request: its end time (time.perf_counter), duration, and status or name of the exception."""

    at: float
    seconds: float
    status: str


class Load:
    """Clients that send photographs in a closed loop."""

    def __init__(self, url: str, photographs: Sequence[bytes]) -> None:
        self.ended: list[Ended] = []
        self._address = urlsplit(url).netloc
        self._photographs = photographs
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _client(self, number: int) -> None:
        for turn in itertools.count(number):
            if self._stop.is_set():
                return
            began = time.perf_counter()
            status = self._ask(self._photographs[turn % len(self._photographs)])
            now = time.perf_counter()
            self.ended.append(Ended(now, now - began, status))

    def _ask(self, photograph: bytes) -> str:
        connection = HTTPConnection(self._address, timeout=DEADLINE_S)
        path = f"/v1/classify?keep_ratio={KEEP_RATIO}&deadline_ms={DEADLINE_S * 1000}"
        return status_of(connection, path, photograph, {"Content-Type": "image/jpeg"})

    def rate(self, since: float, until: float) -> float:
        """Return the number of images answered per second between two times."""
        answered = sum(since <= one.at < until for one in self.ended if one.status == "200")
        return round(answered / (until - since), 2)


def images_by_replica(url: str) -> dict[str, float]:
    """Return the number of images answered by each replica, from the metrics page; {} if it is not
    available."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        page = response.read().decode()
        if response.status != 200:
            return {}
    except (OSError, HTTPException):
        return {}
    finally:
        connection.close()
    replicas: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == "trimvit_queue_limit_images":
                replicas.setdefault(sample.labels["replica"], 0.0)
            if sample.name == "trimvit_images_total" and sample.labels["outcome"] == "answered":
                replicas[sample.labels["replica"]] = sample.value
    return replicas


def node_ends(cluster: RayCluster, url: str, load: Load, how: str, steady_s: float) -> dict[str, Any]:
    """Make a node with a replica fail under a steady load, and wait until two replicas respond again. Raises
    TimeoutError if they do not."""
    began = time.perf_counter()
    time.sleep(steady_s)
    before, asked_before = images_by_replica(url), cluster.asked_again()
    node = cluster.node_with_a_replica()
    killed = time.perf_counter()
    (cluster.kill if how == "killed" else cluster.freeze)(node)

    def new_one_answers() -> bool:
        return any(images for name, images in images_by_replica(url).items() if name not in before)

    recovered = _when(new_one_answers, f"no new replica {RECOVERED_WITHIN_S:g} s after a node was {how}")
    time.sleep(steady_s)
    ended = time.perf_counter()
    if how == "silent":
        cluster.kill(node)
    concerned = [one for one in load.ended if one.at >= killed and one.at - one.seconds < recovered]
    return {
        "node": how,
        "requests_under_way_or_sent_until_recovered": len(concerned),
        "by_status": dict(sorted(Counter(one.status for one in concerned).items())),
        "asked_again": len(cluster.asked_again() - asked_before),
        "slowest_s": round(max(one.seconds for one in concerned), 1),
        "new_replica_answers_after_s": round(recovered - killed, 1),
        "images_per_s": {
            "before": load.rate(began, killed),
            "with_one_replica": load.rate(killed, recovered),
            "after": load.rate(recovered, ended),
        },
        "images_per_s_by_five_seconds_from_the_end_on": [
            load.rate(killed + start, killed + start + BIN_S)
            for start in itertools.takewhile(
                lambda start: killed + start + BIN_S <= ended, itertools.count(0, BIN_S)
            )
        ],
        "answered_by_each_replica_afterwards": {
            "old" if name in before else "new": images for name, images in images_by_replica(url).items()
        },
    }


def _when(happened: Callable[[], bool], otherwise: str) -> float:
    until = time.perf_counter() + RECOVERED_WITHIN_S
    while not happened():
        if time.perf_counter() > until:
            raise TimeoutError(otherwise)
        time.sleep(0.5)
    return time.perf_counter()


def run(options: argparse.Namespace) -> dict[str, Any]:
    photographs = [path.read_bytes() for path in image_files(options.photographs)]
    rows = []
    with (
        ray_cluster(nodes=2) as cluster,
        running_on_ray(cluster, "--min-replicas", "2", "--max-replicas", "2") as url,
        Load(url, photographs) as load,
    ):
        for how in options.ends:
            cluster.add_node()
            rows.append(node_ends(cluster, url, load, how, options.steady))
            print(json.dumps(rows[-1], indent=1), flush=True)
    return {
        "clients": CLIENTS,
        "keep_ratio": KEEP_RATIO,
        "all_requests_by_status": dict(sorted(Counter(one.status for one in load.ended).items())),
        "nodes_that_ended": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--ends", type=lambda text: text.split(","), default=list(ENDS))
    parser.add_argument("--steady", type=float, default=30.0, help="seconds before and after each end")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if not set(options.ends) <= set(ENDS):
        parser.error(f"--ends may name {' and '.join(ENDS)}, got {','.join(options.ends)}")
    text = json.dumps({"machine": machine.describe(), "ray_nodes": run(options)}, indent=2)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
