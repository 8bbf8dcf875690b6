"""`trimvit ray` on a cluster whose nodes die. What it shares with `trimvit serve` is in tests/contract."""

import importlib.util
import subprocess
from collections import Counter

import pytest

from benchmarks.ray_cluster import READY_WITHIN_S, ray_cluster, running_on_ray
from benchmarks.ray_nodes import CLIENTS, ENDS, Load, images_by_replica, node_ends
from tests.system.photographs import photographs
from tests.system.server import TRIMVIT, samples, wait_until

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra ray)"),
    pytest.mark.timeout(READY_WITHIN_S + 600),
]


def more(load: Load, answers: int) -> None:
    """Wait until so many more requests have ended."""
    before = len(load.ended)
    wait_until(lambda: len(load.ended) >= before + answers, f"{answers} more answers", within_s=240)


@pytest.mark.long
@pytest.mark.parametrize("how", ENDS)
def test_a_node_that_ends_under_load_costs_no_request(how: str) -> None:
    """A node with one of two replicas is killed, or falls silent: every request is answered, by the other
    replica and by a new one on the node that was spare."""
    with (
        ray_cluster(nodes=3) as cluster,
        running_on_ray(cluster, "--min-replicas", "2", "--max-replicas", "2") as url,
    ):
        with Load(url, photographs(CLIENTS)) as load:
            more(load, 5 * CLIENTS)
            seen = node_ends(cluster, url, load, how, steady_s=5)
        assert Counter(one.status for one in load.ended) == {"200": len(load.ended)}
        assert set(seen["answered_by_each_replica_afterwards"]) == {"old", "new"}
        assert seen["images_per_s"]["after"] > 0


@pytest.mark.long
def test_a_worker_killed_under_load_costs_no_request() -> None:
    """kill -9 of the only replica's worker: the replica starts another, and every request is answered."""
    with ray_cluster(nodes=1) as cluster, running_on_ray(cluster) as url:
        before = set(images_by_replica(url))
        with Load(url, photographs(CLIENTS)) as load:
            more(load, 2 * CLIENTS)
            (worker,) = cluster.workers()
            worker.kill()
            more(load, 3 * CLIENTS)
        assert Counter(one.status for one in load.ended) == {"200": len(load.ended)}
        assert set(images_by_replica(url)) == before
        restarts = [value for (name, _), value in samples(url).items() if name == "trimvit_restarts_total"]
        assert sorted(restarts) == [0, 1]  # of the dispatcher, and of the worker


def test_a_cluster_that_is_not_there_is_told() -> None:
    """The exit code is 1, and the message names the address; Ray's own patience is a quarter of an hour."""
    ended = subprocess.run(
        [TRIMVIT, "ray", "--ray-address", "127.0.0.1:1"], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1
    assert "cannot reach the Ray cluster" in ended.stderr
    assert "127.0.0.1:1" in ended.stderr
