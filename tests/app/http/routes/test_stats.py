"""GET /v1/stats."""

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from app.http.routes.stats import Stats, described
from tests.app.fakes import FakeDispatch, encoded


def test_counts_come_from_the_metrics_by_name() -> None:
    """What pruning saved is taken from the cost, what second runs cost is added; the rest is as counted."""
    stats = described(
        {
            "trimvit_queue_images": 3.0,
            "trimvit_queue_limit_images": 1024.0,
            "trimvit_images_total": 17.0,
            "trimvit_refusals_total": 2.0,
            "trimvit_batch_images_count": 5.0,
            "trimvit_batch_images_sum": 17.0,
            "trimvit_batch_fill_sum": 1.25,
            "trimvit_compute_unpruned_macs_total": 200.0,
            "trimvit_compute_saved_macs_total": 90.0,
            "trimvit_compute_second_runs_macs_total": 20.0,
        },
        engines_ready=2,
        clock_s=7.5,
    )
    assert stats == Stats(
        clock_s=7.5,
        engines_ready=2,
        queue_images=3,
        queue_limit_images=1024,
        images_answered=17,
        refusals=2,
        batches=5,
        batch_images=17,
        batch_fill_sum=1.25,
        compute=0.65,
    )


def test_a_server_that_has_done_nothing_says_so() -> None:
    """Zeros, and no share of nothing."""
    stats = described({}, engines_ready=0, clock_s=1.0)
    assert (stats.images_answered, stats.batches, stats.compute) == (0, 0, None)


def test_only_answered_images_count_as_answered(
    client: TestClient, dispatch: FakeDispatch, metric: Callable[..., float]
) -> None:
    """A refused image is a refusal; the workers that are ready are counted."""
    before = Stats.model_validate_json(client.get("/v1/stats").content)
    assert before.images_answered == metric("trimvit_images_total", outcome="answered")
    assert client.post("/v1/classify", content=encoded()).status_code == 200
    assert client.post("/v1/classify", content=b"no image").status_code == 422
    after = Stats.model_validate_json(client.get("/v1/stats").content)
    assert after.images_answered == before.images_answered + 1
    assert after.refusals == before.refusals + 1
    assert after.clock_s > before.clock_s
    assert after.engines_ready == 1
    dispatch.model = None
    assert client.get("/v1/stats").json()["engines_ready"] == 0


@pytest.mark.parametrize("name", Stats.model_fields)
def test_every_count_is_described(client: TestClient, name: str) -> None:
    """The OpenAPI document says what each member is."""
    schema = client.get("/openapi.json").json()["components"]["schemas"]["Stats"]
    assert schema["properties"][name]["description"]
