"""The metrics page of a live server, as Prometheus itself reads it."""

import json
import shutil
import socket
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.system.photographs import SHIPPED
from tests.system.server import Server, wait_until

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="Prometheus is not installed (Debian package prometheus)",
)


@pytest.fixture(scope="module")
def used_server(server: Server) -> Server:
    """A server that has answered a few images and refused one."""
    photograph = (SHIPPED / "coffee.jpg").read_bytes()
    for ratio in (1.0, 0.7, 0.5):
        httpx.post(f"{server.url}/v1/classify?keep_ratio={ratio}", content=photograph).raise_for_status()
    assert httpx.post(f"{server.url}/v1/classify", content=b"no image").status_code == 422
    return server


def test_promtool_finds_nothing_to_mend_on_the_page(used_server: Server) -> None:
    """`promtool check metrics` is silent about a live page."""
    page = httpx.get(f"{used_server.url}/metrics").content
    check = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, timeout=60)
    assert check.returncode == 0, check.stdout + check.stderr
    assert check.stdout + check.stderr == b""


@pytest.fixture
def prometheus(used_server: Server, tmp_path: Path) -> Iterator[str]:
    """A real Prometheus that scrapes the server every second; its URL."""
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": "trimvit",
                "static_configs": [{"targets": [used_server.url.removeprefix("http://")]}],
            }
        ],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    with httpx.Client() as client:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={tmp_path}/prometheus.yml",
                f"--storage.tsdb.path={tmp_path}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        url = f"http://127.0.0.1:{port}"
        try:

            def up() -> bool:
                try:
                    return client.get(f"{url}/-/ready").status_code == 200
                except httpx.TransportError:
                    return False

            wait_until(up, "Prometheus to be ready")
            yield url
        finally:
            process.terminate()
            process.wait(30)


def test_a_real_prometheus_scrapes_a_live_server(used_server: Server, prometheus: str) -> None:
    """What the server counted can be asked of Prometheus."""

    def query(expression: str) -> list[dict[str, object]]:
        answer = httpx.get(f"{prometheus}/api/v1/query?query={urllib.parse.quote(expression)}").json()
        result: list[dict[str, object]] = answer["data"]["result"]
        return result

    wait_until(lambda: query('up{job="trimvit"} == 1') != [], "a scrape")
    wait_until(lambda: query('trimvit_images_total{outcome="answered"} >= 3') != [], "the images")
    for expression in (
        'trimvit_refusals_total{reason="undecodable-image"} >= 1',
        "sum(trimvit_phase_seconds_count) by (phase)",
        "trimvit_engine_up == 1",
        "trimvit_compute_saved_macs_total > 0",
    ):
        assert query(expression), expression
