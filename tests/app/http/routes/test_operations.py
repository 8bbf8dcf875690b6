"""Probes and metrics."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from app.decoding.pool import InExecutor
from app.http.health import Health
from app.http.schemas import Readiness
from app.http.server.traffic import Traffic
from app.main import create_app, create_operations_app
from app.settings.settings import Settings
from tests.app.fakes import FakeDispatch, TroubledDecoders, encoded


def test_livez_answers_whatever_the_workers_do(client: TestClient, dispatch: FakeDispatch) -> None:
    """A front end without a worker is alive: killing it would not help."""
    for model in (dispatch.model, None):
        dispatch.model = model
        response = client.get("/livez")
        assert response.status_code == 200
        assert response.json() == {"status": "alive"}


def test_readyz_is_200_once_a_worker_is_ready(client: TestClient) -> None:
    """Ready says so, and how each worker is."""
    response = client.get("/readyz")
    assert response.status_code == 200
    assert "Retry-After" not in response.headers
    Readiness.model_validate_json(response.content, strict=True)
    assert response.json() == {
        "status": "ready",
        "reason": None,
        "engines": [{"ready": True, "device": "cpu:0", "images_pending": 0}],
    }


def test_readyz_is_503_with_retry_after_before(client: TestClient, dispatch: FakeDispatch) -> None:
    """Not ready says when to ask again."""
    dispatch.model = None
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    Readiness.model_validate_json(response.content, strict=True)
    assert response.json()["status"] == "not ready"
    assert response.json()["engines"] == [{"ready": False, "device": None, "images_pending": 0}]


@pytest.mark.parametrize("path", ["/readyz", "/ping"])
def test_while_stopping_no_port_is_ready(path: str) -> None:
    """Also the operations port, which answers to the end: a balancer must send nothing more."""
    traffic = Traffic()
    operations = TestClient(
        create_operations_app(Health(FakeDispatch(), InExecutor(ThreadPoolExecutor(1)), traffic))
    )
    assert operations.get(path).status_code == 200
    traffic.stopping = True
    response = operations.get(path)
    assert response.status_code == 503
    Readiness.model_validate_json(response.content, strict=True)
    assert response.json()["reason"] == "the server is shutting down"
    assert operations.get("/livez").status_code == 200


def test_metrics_are_a_prometheus_page(client: TestClient) -> None:
    """The page has Prometheus's content type, and what was just asked is on it."""
    client.post("/v1/classify", content=encoded())
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert 'trimvit_requests_total{method="POST",route="/v1/classify",status="200"}' in response.text
    assert "# HELP trimvit_phase_seconds Time one image spent in a phase" in response.text


def test_where_images_cannot_be_decoded_nothing_is_ready() -> None:
    """Probes go red and say why; once a decoding process starts they are green again."""
    with ThreadPoolExecutor(1) as threads:
        decoders = TroubledDecoders(threads)
        decoders.trouble = "no image decoding process can be started: the last one was killed"
        client = TestClient(create_app(Settings(), FakeDispatch(), decoders))
        response = client.get("/readyz")
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "1"
        assert response.json()["status"] == "not ready"
        assert (
            response.json()["reason"] == "no image decoding process can be started: the last one was killed"
        )
        assert client.get("/v2/health/ready").status_code == 503
        decoders.trouble = None
        assert client.get("/readyz").status_code == 200
        assert client.get("/v2/health/ready").status_code == 200
