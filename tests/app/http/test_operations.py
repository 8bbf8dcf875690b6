"""Probes and metrics."""

from starlette.testclient import TestClient

from app.http.schemas import Readiness
from tests.app.fakes import FakeEngines, encoded


def test_livez_answers_whatever_the_engines_do(client: TestClient, engines: FakeEngines) -> None:
    """A front end without an engine is alive: killing it would not help."""
    for model in (engines.model, None):
        engines.model = model
        response = client.get("/livez")
        assert response.status_code == 200
        assert response.json() == {"status": "alive"}


def test_readyz_is_200_once_an_engine_is_ready(client: TestClient) -> None:
    """Ready says so, and how each engine is."""
    response = client.get("/readyz")
    assert response.status_code == 200
    assert "Retry-After" not in response.headers
    Readiness.model_validate_json(response.content, strict=True)
    assert response.json() == {
        "status": "ready",
        "reason": None,
        "engines": [{"ready": True, "device": "cpu:0", "images_pending": 0}],
    }


def test_readyz_is_503_with_retry_after_before(client: TestClient, engines: FakeEngines) -> None:
    """Not ready says when to ask again."""
    engines.model = None
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    Readiness.model_validate_json(response.content, strict=True)
    assert response.json()["status"] == "not ready"
    assert response.json()["engines"] == [{"ready": False, "device": None, "images_pending": 0}]


def test_metrics_are_a_prometheus_page(client: TestClient) -> None:
    """The page has Prometheus's content type, and what was just asked is on it."""
    client.post("/v1/classify", content=encoded())
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert 'trimvit_requests_total{method="POST",route="/v1/classify",status="200"}' in response.text
    assert "# HELP trimvit_phase_seconds Time one image spent in a phase" in response.text
