"""One metrics page for all replicas: each sample has a label with its replica."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


class _Replicas(Collector):
    def __init__(self, pages: Mapping[str, str]) -> None:
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, page in self._pages.items():
            for family in text_string_to_metric_families(page):
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, "replica": replica}
                    merged.add_sample(sample.name, labels, sample.value)
        yield from families.values()


def merged(pages: Mapping[str, str]) -> bytes:
    """The pages of the replicas, by name, as one in Prometheus's text format, with a label ``replica``."""
    registry = CollectorRegistry()
    registry.register(_Replicas(pages))
    return generate_latest(registry)
