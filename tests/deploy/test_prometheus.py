"""Prometheus' configuration and alerts, by its own tools; the dashboard against recorded traffic."""

import itertools
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram, Summary

from app.telemetry import metrics
from tests.deploy.promql import SUFFIXES, dashboard_queries

Alerts = list[dict[str, Any]]

# Values to record for the labels that occur. A metric without one of these fails with a KeyError.
LABELS = {
    "route": ["/v1/classify"],
    "method": ["POST"],
    "status": ["200", "503"],
    "phase": ["decode", "queue", "compute", "total"],
    "outcome": ["answered", "queue-full", "agreed", "disagreed"],
    "reason": ["queue-full"],
    "ratio_bucket": ["0.4-0.5", "0.6-0.7"],
    "form": ["dense", "ragged"],
    "worker": ["worker-0", "worker-1"],
    "process": ["http-0"],
    "cause": ["slow", "died"],
    "task": ["metrics"],
    "model": ["toy"],
    "images": ["1", "more"],
}
EVERY_S, UNTIL_S = 15, 600
START = 1_700_000_000


def run(*command: str | Path, **options: Any) -> str:
    """Output of a command that must succeed."""
    ended = subprocess.run(command, capture_output=True, text=True, **options)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_configuration_is_valid(promtool: str, repository: Path) -> None:
    """Prometheus accepts its configuration, and finds the alerts from it."""
    output = run(promtool, "check", "config", repository / "deploy/prometheus/prometheus.yml")
    assert "1 rule files found" in output


def test_alerts_fire_when_they_should(promtool: str, repository: Path) -> None:
    """Each alert behaves as its own tests say."""
    folder = repository / "deploy/prometheus"
    run(promtool, "test", "rules", *sorted(folder.glob("*_test.yml")), cwd=folder)


def test_every_alert_is_tested(alerts: Alerts, repository: Path) -> None:
    """Each alert is shown firing, and not firing."""
    files = (repository / "deploy/prometheus").glob("*_test.yml")
    tests = [test for file in files for test in yaml.safe_load(file.read_text())["tests"]]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    firing = {case["alertname"] for case in cases if case["exp_alerts"]}
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}
    assert firing == silent == {alert["alert"] for alert in alerts}


def test_every_alert_says_what_to_do(alerts: Alerts) -> None:
    """Each alert has a severity, says what is wrong and how bad it is, and where to begin."""
    for alert in alerts:
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert set(alert["annotations"]) == {"summary", "description", "runbook"}
        assert alert["annotations"]["description"].endswith(".")
        assert alert["annotations"]["runbook"].endswith(".")


def test_metric_names_are_prometheus_style(promtool: str) -> None:
    """Prometheus' own lint finds nothing to say about what the server exposes."""
    exposition = (
        "import sys; from app.telemetry import metrics; sys.stdout.buffer.write(metrics.exposition()[0])"
    )
    page = run(sys.executable, "-c", exposition, cwd=Path(metrics.__file__).parents[2])
    assert "trimvit_" in page
    run(promtool, "check", "metrics", input=page)


def test_dashboard_queries_are_valid(promtool: str, dashboard: dict[str, Any], tmp_path: Path) -> None:
    """Prometheus can parse every query of the dashboard."""
    rules = [
        {"record": f"query:{number}", "expr": query}
        for number, (_, query, _) in enumerate(dashboard_queries(dashboard))
    ]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in run(promtool, "check", "rules", file)


def recorded() -> Iterator[str]:
    """Ten minutes of steady traffic in every metric, in the OpenMetrics format."""
    for metric in vars(metrics).values():
        kind = next((kind for kind in SUFFIXES if isinstance(metric, kind)), None)
        if kind is None:
            continue
        name, names = metric._name, metric._labelnames
        yield f"# TYPE {name} {metric._type}"
        for values in itertools.product(*(LABELS[label] for label in names)):
            labels = {"job": "trimvit", "instance": "here", **dict(zip(names, values, strict=True))}
            for second in range(0, UNTIL_S + 1, EVERY_S):
                for suffix, extra, value in samples(kind, metric, second):
                    written = ",".join(f'{key}="{text}"' for key, text in {**labels, **extra}.items())
                    yield f"{name}{suffix}{{{written}}} {value} {START + second}"
    yield "# EOF\n"


def samples(kind: type, metric: Any, second: int) -> Iterator[tuple[str, dict[str, str], float]]:
    """What a metric shows after so many seconds: gauges stand, and the others grow by one a second."""
    if kind is Gauge:
        yield "", {}, 1
    elif kind is Counter:
        yield "_total", {}, second
    elif kind is Histogram:
        bounds = metric._upper_bounds
        for number, bound in enumerate(bounds):
            edge = "+Inf" if math.isinf(bound) else str(float(bound))
            yield "_bucket", {"le": edge}, second * (number + 1) // len(bounds)
        yield "_count", {}, second
        yield "_sum", {}, second * bounds[0]
    elif kind is Summary:
        yield "_count", {}, second
        yield "_sum", {}, second / 2


@pytest.fixture(scope="module")
def prometheus(promtool: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Prometheus that holds the recorded traffic."""
    server = shutil.which("prometheus")
    if server is None:
        pytest.skip("prometheus is not installed; Debian's package prometheus has it")
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "recorded.txt").write_text("\n".join(recorded()))
    run(promtool, "tsdb", "create-blocks-from", "openmetrics", folder / "recorded.txt", folder / "data")
    (folder / "prometheus.yml").write_text("")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        server,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--storage.tsdb.retention.time=100y",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_until_ready(address, process, folder / "log")
            yield f"http://{address}"
        finally:
            process.terminate()


def wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Come back when Prometheus answers; fail with its log if it ends before."""
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            urlopen(f"http://{address}/-/ready").close()
        except URLError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(log.read_text())


@pytest.mark.system
def test_every_panel_shows_data(prometheus: str, dashboard: dict[str, Any]) -> None:
    """Once there was traffic, each of the dashboard's queries has results, with the labels of its legend."""
    queries = list(dashboard_queries(dashboard))
    assert queries
    for where, query, legend in queries:
        question = urlencode({"query": query, "time": START + UNTIL_S})
        with urlopen(f"{prometheus}/api/v1/query?{question}") as response:
            result = json.load(response)["data"]["result"]
        assert result, (where, query)
        for series in result:
            assert math.isfinite(float(series["value"][1])), (where, query)
            assert set(re.findall(r"{{(\w+)}}", legend)) <= set(series["metric"]), (where, query)
