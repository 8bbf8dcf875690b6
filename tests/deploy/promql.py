"""What the monitoring files ask of Prometheus, and what the server has to answer with."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter, Gauge, Histogram, Summary

from app.telemetry import metrics

# Given to every series by the scrape, and to the buckets of histograms by their format.
TARGET_LABELS = frozenset({"job", "instance"})
SUFFIXES = {
    Counter: ("_total",),
    Gauge: ("",),
    Histogram: ("_bucket", "_sum", "_count"),
    Summary: ("_sum", "_count"),
}

_SELECTOR = re.compile(r"\b(?P<name>trimvit_\w+)(?:\{(?P<matchers>[^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\bby\s*\(([^)]*)\)\s*(?=\()")


@dataclass(frozen=True)
class Selector:
    """A metric as a query names it, with its matchers' (label, value) pairs."""

    name: str
    matchers: tuple[tuple[str, str], ...]


def exposed() -> dict[str, frozenset[str]]:
    """Every series name that the server exposes, with its labels."""
    found: dict[str, frozenset[str]] = {}
    for metric in vars(metrics).values():
        for kind, suffixes in SUFFIXES.items():
            if isinstance(metric, kind):
                for suffix in suffixes:
                    # prometheus_client has no public way to ask a metric for its name and label names.
                    labels = {*metric._labelnames, *TARGET_LABELS, *(["le"] if suffix == "_bucket" else [])}
                    found[metric._name + suffix] = frozenset(labels)
    return found


def selectors(query: str) -> list[Selector]:
    """The metrics of ours that a query names."""
    return [
        Selector(found["name"], tuple(_MATCHER.findall(found["matchers"] or "")))
        for found in _SELECTOR.finditer(query)
    ]


def groupings(query: str) -> Iterator[tuple[set[str], list[Selector]]]:
    """Each ``by (labels)`` of a query, with the metrics that are grouped by them."""
    for found in _GROUPING.finditer(query):
        depth, start = 0, found.end()
        for end in range(start, len(query)):
            depth += {"(": 1, ")": -1}.get(query[end], 0)
            if depth == 0:
                break
        yield {label.strip() for label in found[1].split(",")}, selectors(query[start:end])


def dashboard_queries(dashboard: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(where, query, legend) of everything that the dashboard asks, Grafana's own variables filled in."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", filled_in(target["expr"]), target["legendFormat"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["name"], filled_in(annotation["expr"]), annotation["titleFormat"]


def filled_in(query: str) -> str:
    """A dashboard's query as Prometheus gets it, for all servers."""
    return query.replace("$__rate_interval", "1m").replace("$instance", ".*")
