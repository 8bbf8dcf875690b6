"""A Ray cluster of several nodes on this machine, and `trimvit ray` on it, for benchmarks and tests."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.server import PATIENCE_S, end, is_ready

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

READY_WITHIN_S = 2 * PATIENCE_S  # each replica is a process, and starts one; a busy machine takes its time
OBJECT_STORE_BYTES = 80 * 2**20
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # On a machine that is busy with other programs, replicas of Ray's niceness of 15 would hardly run, and a
    # proxy that is not ready within five seconds would be started again and again.
    "RAY_worker_niceness": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
}
_ASKED_AGAIN = re.compile(r"request (\S+): replica \d died while")


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
        # Wherever its own files are, Ray writes down the last cluster's address here, and needs the folder.
        (Path(tempfile.gettempdir()) / "ray").mkdir(exist_ok=True)
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

    def workers(self) -> list[psutil.Process]:
        """The replicas' workers, on all nodes."""
        return [process for node in self.nodes for process in _processes(node) if _is_worker(process)]

    def node_with_a_replica(self) -> Any:
        """The first node that has one. Raises LookupError where none has."""
        for node in self.nodes:
            if any(map(_is_worker, _processes(node))):
                return node
        raise LookupError("no node has a replica")

    def freeze(self, node: Any) -> None:
        """Nothing of the node says a word any more, and every connection to it stays open: as a machine that
        has lost its network, or its power, looks to the others."""
        for process in _processes(node):
            process.send_signal(signal.SIGSTOP)

    def kill(self, node: Any) -> None:
        """kill -9 of all processes of the node, frozen or not."""
        processes = _processes(node)
        for process in processes:
            process.kill()
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)
        psutil.wait_procs(processes, timeout=PATIENCE_S)

    def asked_again(self) -> set[str]:
        """The ids of requests that app.ray.ask_again has asked again, as its log says."""
        logs = Path(self.folder).glob("session_*/logs/**/*")
        return {
            request
            for log in logs
            if log.is_file() and log.suffix in (".err", ".log")
            for request in _ASKED_AGAIN.findall(log.read_text(errors="replace"))
        }


def _processes(node: Any) -> list[psutil.Process]:
    """Those that Ray has started for the node, and what they have started."""
    found = []
    for started in (one.process for several in node.all_processes.values() for one in several):
        try:
            process = psutil.Process(started.pid)
            found += [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return found


def _is_worker(process: psutil.Process) -> bool:
    try:
        return " ".join(process.cmdline()).startswith("trimvit: worker")
    except psutil.NoSuchProcess:
        return False


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
def running_on_ray(cluster: RayCluster, *flags: str) -> Iterator[str]:
    """`trimvit ray` on the cluster, ready, behind the head node's proxy; its URL. Raises RuntimeError with
    its log where it does not come up."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "app.cli", "ray", "--ray-address", cluster.address]
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*command, "--proxies", "head-node", "--port", str(port), *flags], stdout=sink, stderr=sink
            )
        try:
            _wait_until(lambda: process.poll() is not None or "listening on" in log.read_text(), log)
            if process.poll() is not None:
                raise RuntimeError(f"trimvit ray has ended: {log.read_text()}")
            _wait_until(lambda: is_ready(port), log)
            yield f"http://127.0.0.1:{port}"
        except BaseException:
            sys.stderr.write(log.read_text())
            raise
        finally:
            end(process)


def _wait_until(condition: Callable[[], bool], log: Path) -> None:
    until = time.monotonic() + READY_WITHIN_S
    while not condition():
        if time.monotonic() > until:
            raise RuntimeError(f"trimvit ray did not become ready: {log.read_text()}")
        time.sleep(0.1)
