"""Run a Ray cluster with several nodes on this machine, and `trimvit ray` on it, for benchmarks and tests."""

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

READY_WITHIN_S = 2 * PATIENCE_S  # each replica starts another process, which takes long on a busy machine
OBJECT_STORE_BYTES = 80 * 2**20
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # On a busy machine, replicas with Ray's default niceness of 15 would hardly run, and a proxy that is not
    # ready within five seconds would be restarted repeatedly.
    "RAY_worker_niceness": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
}
_ASKED_AGAIN = re.compile(r"request (\S+): replica \d died while")


@dataclass
class RayCluster:
    """A head node without CPUs for replicas, and other nodes with one CPU each, enough for one replica."""

    cluster: "Cluster"
    folder: str
    nodes: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def start(self, nodes: int) -> None:
        # Ray writes the address of the last cluster here, regardless of its temp_dir, and needs the folder.
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
        """Return the worker processes of the replicas on all nodes."""
        return [process for node in self.nodes for process in _processes(node) if _is_worker(process)]

    def node_with_a_replica(self) -> Any:
        """Return the first node with a replica. Raises LookupError if there is none."""
        for node in self.nodes:
            if any(map(_is_worker, _processes(node))):
                return node
        raise LookupError("no node has a replica")

    def freeze(self, node: Any) -> None:
        """Stop all processes of the node, so that it does not respond but its connections stay open. To other
        nodes, this looks like a machine that has lost its network or power."""
        for process in _processes(node):
            process.send_signal(signal.SIGSTOP)

    def kill(self, node: Any) -> None:
        """Kill (-9) all processes of the node, frozen or not."""
        processes = _processes(node)
        for process in processes:
            process.kill()
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)
        psutil.wait_procs(processes, timeout=PATIENCE_S)

    def asked_again(self) -> set[str]:
        """Return the IDs of requests that app.ray.ask_again has retried, according to its log."""
        logs = Path(self.folder).glob("session_*/logs/**/*")
        return {
            request
            for log in logs
            if log.is_file() and log.suffix in (".err", ".log")
            for request in _ASKED_AGAIN.findall(log.read_text(errors="replace"))
        }


def _processes(node: Any) -> list[psutil.Process]:
    """Return the processes that Ray started for the node, and their descendants."""
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
    """Run a cluster with ``nodes`` nodes in addition to its head node."""
    from ray.cluster_utils import Cluster

    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)  # nodes and their workers inherit this
    running: RayCluster | None = None
    try:
        for last in (False, False, True):
            # A short path, because Ray creates sockets in this folder.
            running = RayCluster(Cluster(), tempfile.mkdtemp(prefix="ray-"))
            try:
                running.start(nodes)
                break
            except Exception as error:
                # Ray gives each node 30 seconds to start, which may not be enough on a busy machine.
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
    """Run `trimvit ray` on the cluster, with a proxy on the head node. Yields the URL once it is ready.
    Raises RuntimeError with its log if it does not start."""
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
