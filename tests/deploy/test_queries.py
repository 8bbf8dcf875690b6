"""The dashboard and the alerts ask for what the server exposes, and the dashboard for all of it."""

import re
from typing import Any

import pytest

from app import errors
from app.main import create_app
from app.settings.settings import Settings
from app.telemetry import metrics
from tests.app.fakes import FakeDispatch
from tests.deploy.promql import SUFFIXES, dashboard_queries, exposed, groupings, selectors

# Series that no panel shows, and why.
NOT_SHOWN: dict[str, str] = {}


@pytest.fixture(scope="module")
def queries(alerts: list[dict[str, Any]], dashboard: dict[str, Any]) -> dict[str, str]:
    """Every query by where it stands."""
    return {
        **{f"alert {alert['alert']}": alert["expr"] for alert in alerts},
        **{f"panel {where}": query for where, query, _ in dashboard_queries(dashboard)},
    }


def test_metrics_are_found_in_queries() -> None:
    """The reader of queries sees metrics, matchers and groupings where they stand."""
    query = 'sum by (le, route) (rate(trimvit_a_bucket{route!~"/x|/y"}[5m])) / trimvit_b'
    assert [selector.name for selector in selectors(query)] == ["trimvit_a_bucket", "trimvit_b"]
    assert selectors(query)[0].matchers == (("route", "/x|/y"),)
    [(labels, grouped)] = groupings(query)
    assert labels == {"le", "route"}
    assert [selector.name for selector in grouped] == ["trimvit_a_bucket"]


def test_metrics_exist(queries: dict[str, str]) -> None:
    """Every metric that is asked for is exposed, under that very name."""
    assert [
        (where, selector.name)
        for where, query in queries.items()
        for selector in selectors(query)
        if selector.name not in exposed()
    ] == []


def test_labels_exist(queries: dict[str, str]) -> None:
    """Labels are matched and grouped by only where the metric has them."""
    known = exposed()
    unknown = []
    for where, query in queries.items():
        matched = [({label for label, _ in one.matchers}, [one]) for one in selectors(query)]
        for labels, asked in (*matched, *groupings(query)):
            unknown += [
                (where, one.name, labels - known[one.name]) for one in asked if labels - known[one.name]
            ]
    assert unknown == []


def test_reasons_and_phases_exist(queries: dict[str, str]) -> None:
    """Refusals are matched by problem types that exist, phases by names that the metric's help lists."""
    matched = {
        (label, value)
        for query in queries.values()
        for selector in selectors(query)
        for label, values in selector.matchers
        for value in values.split("|")
    }
    problems = {kind.slug for kind in vars(errors).values() if hasattr(kind, "slug")}
    assert {value for label, value in matched if label == "reason"} <= problems
    phases = set(re.findall(r"\w+", metrics.PHASE_SECONDS._documentation.partition(":")[2]))
    assert {value for label, value in matched if label == "phase"} <= phases


def test_requests_that_are_counted_are_for_inference(queries: dict[str, str]) -> None:
    """Of all routes that take POST, those that load models or register memory are left out, and no other."""
    app = create_app(Settings(model_repository=True), FakeDispatch())
    routes = {path for path, operations in app.openapi()["paths"].items() if "post" in operations}
    administrative = {route for route in routes if "/repository/" in route or "sharedmemory/" in route}
    assert len(administrative) >= 5
    counting = {
        (where, one.matchers)
        for where, query in queries.items()
        for one in selectors(query)
        if one.name == "trimvit_requests_total" and ("method", "POST") in one.matchers
    }
    assert counting
    for where, matchers in counting:
        left_out = dict(matchers)["route"]
        assert {route for route in routes if re.fullmatch(left_out, route)} == administrative, where


def test_every_metric_is_on_the_dashboard(dashboard: dict[str, Any]) -> None:
    """Whatever the server measures is shown, or its absence is accounted for."""
    shown = {one.name for _, query, _ in dashboard_queries(dashboard) for one in selectors(query)}
    measured = {
        metric._name: {metric._name + suffix for suffix in suffixes}
        for metric in vars(metrics).values()
        for kind, suffixes in SUFFIXES.items()
        if isinstance(metric, kind)
    }
    missing = {name for name, series in measured.items() if not series & shown}
    assert missing == set(NOT_SHOWN)
