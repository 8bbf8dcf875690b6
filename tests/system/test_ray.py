"""`trimvit ray` on a cluster whose nodes die. What it shares with `trimvit serve` is in tests/contract."""

import importlib.util
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from tests.system.photographs import photographs
from tests.system.ray_cluster import READY_WITHIN_S, ray_cluster, running_on_ray
from tests.system.server import TRIMVIT, samples, wait_until

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra ray)"),
    pytest.mark.timeout(READY_WITHIN_S + 600),
]
CLIENTS = 8


@dataclass
class Load:
    """Clients that ask again as soon as they are answered."""

    url: str
    ended: list[tuple[float, int | str]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._client, args=(index,)) for index in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _client(self, index: int) -> None:
        images = photographs(CLIENTS)
        with httpx.Client(timeout=300) as client:
            while not self._stop.is_set():
                status: int | str
                try:
                    content = images[index]
                    status = client.post(
                        f"{self.url}/v1/classify?keep_ratio=0.5&deadline_ms=300000", content=content
                    ).status_code
                except httpx.TransportError as error:
                    status = repr(error)
                self.ended.append((time.monotonic(), status))

    def more(self, answers: int) -> None:
        """Wait until so many more requests have ended."""
        before = len(self.ended)
        wait_until(lambda: len(self.ended) >= before + answers, f"{answers} more answers", within_s=240)


def replicas(url: str) -> set[str]:
    """The replicas on the metrics page."""
    return {dict(labels)["replica"] for name, labels in samples(url) if name == "trimvit_queue_limit_images"}


@pytest.mark.long
def test_a_node_killed_under_load_costs_no_request(tmp_path: Path) -> None:
    """kill -9 of a node with one of two replicas: every request is answered, by the other one and by a new
    one on the node that was spare."""
    with (
        ray_cluster(nodes=3) as cluster,
        running_on_ray(cluster, tmp_path, "--min-replicas", "2", "--max-replicas", "2") as url,
    ):
        before = replicas(url)
        assert len(before) == 2
        with Load(url) as load:
            load.more(5 * CLIENTS)
            engines = {process.pid: process for process in cluster.engines()}
            # Whichever node has a replica: the engine's end shows that one went.
            while len(engines_alive(engines)) == 2:
                cluster.kill_node()
                time.sleep(5)
            assert len(cluster.nodes) >= 1
            load.more(5 * CLIENTS)
            cluster.add_node()
            wait_until(lambda: len(replicas(url) - before) >= 1, "a new replica", within_s=240)
            load.more(5 * CLIENTS)
        assert Counter(status for _, status in load.ended) == {200: len(load.ended)}


def engines_alive(engines: dict[int, psutil.Process]) -> list[psutil.Process]:
    return [engine for engine in engines.values() if engine.is_running()]


@pytest.mark.long
def test_an_engine_killed_under_load_costs_no_request(tmp_path: Path) -> None:
    """kill -9 of the only replica's engine: the replica starts another, and every request is answered."""
    with ray_cluster(nodes=1) as cluster, running_on_ray(cluster, tmp_path) as url:
        before = replicas(url)
        with Load(url) as load:
            load.more(2 * CLIENTS)
            (engine,) = cluster.engines()
            engine.kill()
            load.more(3 * CLIENTS)
        assert Counter(status for _, status in load.ended) == {200: len(load.ended)}
        assert replicas(url) == before
        restarts = [value for (name, _), value in samples(url).items() if name == "trimvit_restarts_total"]
        assert restarts == [1]


def test_a_cluster_that_is_not_there_is_told() -> None:
    """The exit code is 1, and the message names the address; Ray's own patience is a quarter of an hour."""
    ended = subprocess.run(
        [TRIMVIT, "ray", "--ray-address", "127.0.0.1:1"], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1
    assert "cannot reach the Ray cluster" in ended.stderr
    assert "127.0.0.1:1" in ended.stderr
