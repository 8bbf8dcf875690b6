"""What the system tests share."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.bundled import BUNDLED_MODEL
from tests.system.server import Server, free_port, running_server
from tests.system.small_network import save_small_network


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Everything in this folder starts processes."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with the bundled model, for tests that do it no harm."""
    flags = ("--log-level", "debug", "--grpc-port", str(free_port()), "--shared-memory-bytes", "10000000")
    with running_server(tmp_path_factory.mktemp("server"), *flags) as running:
        yield running


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network whose cascade is sure of half of the photographs."""
    path = tmp_path_factory.mktemp("calibrated") / "small.safetensors"
    save_small_network(path)
    return path


@pytest.fixture(scope="session")
def both(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The bundled model, and a small one that sees 64 x 64 pixels and has defaults of its own."""
    models = ("--model", f"photo={BUNDLED_MODEL}", "--model", f"small={calibrated}")
    own = ("--model-default", "small.keep_ratio=0.5", "--model-default", "small.reducer=merge")
    flags = (*models, *own, "--dtype", "float32", "--max-queue-s", "600", "--default-deadline-ms", "300000")
    with running_server(tmp_path_factory.mktemp("both"), *flags) as running:
        yield running


@pytest.fixture(scope="session")
def dashboard() -> dict[str, Any]:
    """Grafana's dashboard."""
    path = Path(__file__).parents[2] / "deploy/grafana/dashboards/trimvit.json"
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.fixture(scope="session")
def alerts() -> dict[str, str]:
    """The expression of each of Prometheus' alerts, by its name."""
    path = Path(__file__).parents[2] / "deploy/prometheus/alerts.yml"
    groups = yaml.safe_load(path.read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}
