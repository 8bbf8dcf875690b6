"""A real Prometheus that scrapes a live server."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.system.server import wait_until

needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="Prometheus is not installed (Debian package prometheus)",
)


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=60)

    def is_ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now, each with its labels and its value."""
        answer = self._client.get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, answer.text
        result: list[dict[str, Any]] = answer.json()["data"]["result"]
        return result

    def values_since(self, expression: str, since: float, step_s: float = 5.0) -> list[float]:
        """What an expression gave from that time (seconds of the epoch) until now, as a panel draws it."""
        window = {"query": expression, "start": since, "end": time.time(), "step": step_s}
        answer = self._client.get("/api/v1/query_range", params=window)
        assert answer.status_code == 200, answer.text
        return [float(value) for series in answer.json()["data"]["result"] for _, value in series["values"]]


@contextmanager
def running_prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Scrapes the server at the URL ``target`` every second."""
    job = {"job_name": "trimvit", "static_configs": [{"targets": [target.removeprefix("http://")]}]}
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        prometheus = Prometheus(f"http://{address}")
        wait_until(prometheus.is_ready, "Prometheus to be ready")
        yield prometheus
    finally:
        process.terminate()
        process.wait(60)
