"""A Ray cluster of several nodes on this machine, and `trimvit ray` on it."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.system.server import TRIMVIT, is_ready, wait_until

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

READY_WITHIN_S = 600  # each replica is a process, and starts one; beside other tests that takes its time
OBJECT_STORE_BYTES = 80 * 2**20
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # On a machine that is busy with other tests, replicas of Ray's niceness of 15 would hardly run, and a
    # proxy that is not ready within five seconds would be started again and again.
    "RAY_worker_niceness": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
}


@dataclass
class RayCluster:
    """A head node without CPUs to give away, and nodes with one each: a node takes one replica."""

    cluster: "Cluster"
    folder: str
    nodes: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def start(self, nodes: int) -> None:
        self.cluster.add_node(
            num_cpus=0,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            temp_dir=self.folder,
        )
        for _ in range(nodes):
            self.add_node()
        self.cluster.wait_for_nodes()

    def shutdown(self) -> None:
        self.cluster.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add_node(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES))

    def engines(self) -> list[psutil.Process]:
        """The replicas' engines, on all nodes."""
        found = []
        for process in psutil.process_iter():
            try:
                if " ".join(process.cmdline()).startswith("trimvit: engine"):
                    *_, raylet = process.parents()[:2]  # of its replica
                    if self.folder in " ".join(raylet.cmdline()):
                        found.append(process)
            except (psutil.NoSuchProcess, ValueError):
                continue  # it ended meanwhile
        return found

    def kill_node(self) -> None:
        """kill -9 of a node's processes."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)


@contextmanager
def ray_cluster(nodes: int) -> Iterator[RayCluster]:
    """A cluster with so many nodes beside its head."""
    from ray.cluster_utils import Cluster

    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)  # what nodes and their workers inherit
    running: RayCluster | None = None
    try:
        for last in (False, False, True):
            running = RayCluster(Cluster(), tempfile.mkdtemp(prefix="ray-"))  # short: Ray puts sockets there
            try:
                running.start(nodes)
                break
            except Exception as error:
                # Ray gives each node 30 seconds, whatever else the machine does.
                if last or "timed out during startup" not in str(error):
                    raise
                running.shutdown()
        yield running
    finally:
        if running is not None:
            running.shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


@contextmanager
def running_on_ray(cluster: RayCluster, folder: Path, *flags: str) -> Iterator[str]:
    """`trimvit ray` on the cluster, ready, behind the head node's proxy; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    log = folder / "ray.log"
    command = [TRIMVIT, "ray", "--ray-address", cluster.address, "--proxies", "head-node", "--port", port]
    with log.open("wb") as sink:
        process = subprocess.Popen([*command, *flags], stdout=sink, stderr=sink)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(
            lambda: process.poll() is not None or "listening on" in log.read_text(),
            "the replicas to be ready",
        )
        assert process.poll() is None, log.read_text()
        wait_until(lambda: is_ready(url), "readiness")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        sys.stdout.write(log.read_text())  # shown with a failing test
