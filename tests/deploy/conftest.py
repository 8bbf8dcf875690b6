"""The deployment files, read once."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder that the files lie in."""
    return Path(__file__).parents[2]


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus' own checker."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed; Debian's package prometheus has it")
    return found


@pytest.fixture(scope="session")
def instructions(repository: Path) -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), comments gone and continued lines joined."""
    lines = [
        line for line in (repository / "Dockerfile").read_text().splitlines() if not line.startswith("#")
    ]
    joined = "\n".join(lines).replace("\\\n", "")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


@pytest.fixture(scope="session")
def compose(repository: Path) -> dict[str, Any]:
    """docker-compose.yml."""
    return yaml.safe_load((repository / "docker-compose.yml").read_text())


@pytest.fixture(scope="session")
def alerts(repository: Path) -> list[dict[str, Any]]:
    """The alerts of all groups."""
    groups = yaml.safe_load((repository / "deploy/prometheus/alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.fixture(scope="session")
def dashboard(repository: Path) -> dict[str, Any]:
    """Grafana's dashboard."""
    return json.loads((repository / "deploy/grafana/dashboards/trimvit.json").read_text())


@pytest.fixture(scope="session")
def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """The dashboard's panels, without the rows that hold them together."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]
