"""The pages of several replicas as one."""

import math

from prometheus_client.parser import text_string_to_metric_families

from app.ray.metrics_page import merged

PAGE = """# HELP trimvit_requests_total HTTP requests answered.
# TYPE trimvit_requests_total counter
trimvit_requests_total{route="/livez",status="200"} %d.0
# HELP trimvit_batch_images Images in a batch.
# TYPE trimvit_batch_images histogram
trimvit_batch_images_bucket{le="1.0"} 2.0
trimvit_batch_images_bucket{le="+Inf"} 3.0
trimvit_batch_images_count 3.0
trimvit_batch_images_sum 5.0
"""


def test_every_sample_is_there_with_its_replica() -> None:
    """Counters and histograms keep names, labels, values, types and help; no family comes twice."""
    page = merged({"one": PAGE % 3, "two": PAGE % 5}).decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert {name: family.type for name, family in families.items()} == {
        "trimvit_requests": "counter",
        "trimvit_batch_images": "histogram",
    }
    assert page.count("# HELP trimvit_requests_total HTTP requests answered.") == 1
    requests = {
        tuple(sorted(sample.labels.items())): sample.value for sample in families["trimvit_requests"].samples
    }
    assert requests == {
        (("replica", "one"), ("route", "/livez"), ("status", "200")): 3.0,
        (("replica", "two"), ("route", "/livez"), ("status", "200")): 5.0,
    }
    infinite = [
        sample.value
        for sample in families["trimvit_batch_images"].samples
        if sample.labels.get("le") == "+Inf" and not math.isnan(sample.value)
    ]
    assert infinite == [3.0, 3.0]


def test_without_a_replica_the_page_is_empty() -> None:
    assert merged({}).strip() == b""
