"""Unknown paths: what was meant, in words."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import APIRouter
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from app.http.health import Health
from app.http.unknown_paths import paths_of, what_was_meant, without_slash
from app.main import create_operations_app
from tests.app.fakes import MODEL, FakeDispatch

ROUTES = ("/v1/classify", "/v1/models", "/v1/stats", "/v2", "/livez", "/readyz", "/metrics", "/docs", "/")


def told(client: TestClient, method: str, path: str) -> str:
    """What a 404 says, in either shape of errors."""
    # As bytes, for httpx would tidy the path up.
    response = client.request(method, client.base_url.copy_with(raw_path=path.encode()))
    assert response.status_code == 404, response.text
    document: dict[str, Any] = response.json()
    words: str = document.get("detail") or document["error"]
    return words


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/classifiy", "/v1/classify"),
        ("/v1/Classify", "/v1/classify"),
        ("//v1/classify", "/v1/classify"),
        ("/v1//classify", "/v1/classify"),
        ("/api/v1/classify", "/v1/classify"),
        ("/v1/clasify", "/v1/classify"),
        ("/v1/model", "/v1/models"),
        ("/v1/stat", "/v1/stats"),
        ("/readyz.", "/readyz"),
        ("/LIVEZ", "/livez"),
        ("/doc", "/docs"),
    ],
)
def test_a_slip_is_told_with_the_nearest_route(client: TestClient, path: str, meant: str) -> None:
    """A letter too many, capitals, double slashes, a prefix."""
    assert told(client, "POST", path).endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/classify", "POST /v1/classify"),
        ("/predict", "POST /v1/classify"),
        ("/api/predict", "POST /v1/classify"),
        ("/api/classify", "POST /v1/classify"),
        ("/v1/predict", "POST /v1/classify"),
        ("/predictions/vit", "POST /v1/classify"),
        ("/predictions", "POST /v1/classify"),
        ("/pipeline/image-classification/vit", "POST /v1/classify"),
        ("/v1/embeddings", "only classifies and embeds images"),
        ("/v1/chat/completions", "only classifies and embeds images"),
        ("/chat/completions", "only classifies and embeds images"),
        ("/health", "GET /readyz"),
        ("/healthz", "GET /livez"),
        ("/health/", "GET /readyz"),
        ("/v1/health", "GET /readyz"),
        ("/v1/health/ready", "GET /readyz"),
        ("/-/healthy", "GET /readyz"),
        ("/actuator/health", "GET /readyz"),
        ("/v1/metrics", "did you mean /metrics?"),
        ("/redoc", "GET /docs"),
        ("/swagger.json", "GET /openapi.json"),
        ("/models", "GET /v1/models"),
        ("/v2/models", "GET /v1/models"),
        ("/v2/models/toy/versions", "one version, '1'"),
        ("/v2/repository/index", "was started with --model-repository"),
        ("/v2/repository/models/toy/load", "was started with --model-repository"),
        ("/v2/systemsharedmemory", "only system shared memory is supported: POST /v2/systemsharedmemory"),
        (
            "/v2/cudasharedmemory/region/a/register",
            "only system shared memory is supported: POST /v2/systemsharedmemory",
        ),
        ("/v2/trace/setting", "cannot be changed"),
        ("/v2/logging", "cannot be changed"),
        ("/v2/models/toy/generate", "POST /v2/models/NAME/infer"),
        ("/nothing/like/it", "GET /docs lists the routes"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_servers_route_is_told_with_the_one_here(
    client: TestClient, method: str, path: str, words: str
) -> None:
    """By whichever method it is asked for."""
    assert words in told(client, method, path)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v2/models/toy/reddy", "the model 'toy' has no 'reddy'; did you mean ready?"),
        ("/v2/models/toy/versions/2", "there is no version '2' of the model 'toy'; allowed is '1'"),
        ("/v2/models/tox", "there is no model 'tox'; allowed is 'toy'"),
        ("/v2/models/t%C3%B6y", "there is no model 'töy'; allowed is 'toy'"),
        ("/v2/models/hf-hub%3Aowner%2Fname", "there is no model 'hf-hub:owner/name'; allowed is 'toy'"),
    ],
)
def test_a_wrong_name_or_version_is_told_with_what_there_is(
    client: TestClient, path: str, words: str
) -> None:
    """Percent-encoded, in any script, with slashes."""
    assert told(client, "GET", path) == words


def test_a_wrong_method_names_the_right_one(client: TestClient) -> None:
    """And on /v2, the route that classifies."""
    assert "supports POST, not PUT" in client.put("/v1/classify").json()["detail"]
    error = client.post(f"/v2/models/{MODEL.name}/infre").json()["error"]
    assert "POST /v2/models/NAME/infer classifies images" in error


@pytest.mark.parametrize("path", ["/metrics", "/prometheus", "/v1/metrics"])
def test_metrics_that_are_on_another_port_are_not_suggested_here(
    make_client: Callable[..., TestClient], path: str
) -> None:
    """It is told where they are."""
    words = told(make_client(operations_port=9000), "GET", path)
    assert "are on the port of --operations-port" in words
    assert "GET /metrics" not in words


def test_the_operations_port_suggests_only_what_it_has() -> None:
    """Its own routes."""
    health = Health(FakeDispatch(), ThreadPoolExecutor(1))
    operations = TestClient(create_operations_app(health))
    assert told(operations, "GET", "/readyzz").endswith("did you mean /readyz?")
    for path in ("/v1/clasify", "/predict"):
        assert told(operations, "GET", path).endswith("; there are /livez, /readyz, /ping, /metrics")


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/v1/classify/", "../classify"),
        ("/docs/", "../docs"),
        ("/readyz//", "../../readyz"),
        ("/v1/models/?a=b", "../models?a=b"),
        ("/v2/models/toy/", "../toy"),
        ("/v2/models/toy/infer/", "../infer"),
        ("/models/toy/", "../toy"),
        ("/models/t%C3%B6y/", "../t%C3%B6y"),
    ],
)
def test_a_slash_at_the_end_is_redirected(client: TestClient, path: str, location: str) -> None:
    """Relative to the path, whatever the proxy made of host and prefix; the method and the body stay."""
    response = client.get(path, follow_redirects=False)
    assert (response.status_code, response.headers["Location"]) == (307, location)
    assert "leave it out" in response.text


def test_a_slash_at_the_end_of_nothing_is_a_404(client: TestClient) -> None:
    """It leads nowhere else."""
    assert client.get("/nothing/", follow_redirects=False).status_code == 404


@given(st.text(max_size=400))
def test_any_path_is_answered_in_words(text: str) -> None:
    """A sentence that goes on after the path, without what was sent."""
    words = what_was_meant("/" + text, ROUTES)
    assert words.startswith("; ")
    assert len(words) < 300
    location = without_slash("/" + text)
    assert location is None or location.startswith("../")


def test_only_paths_without_names_in_them_are_suggested() -> None:
    """A route for any name is no route to suggest."""
    router = APIRouter()
    for path in ("/a", "/b/{name}", "/a"):
        router.add_api_route(path, lambda: None, methods=["GET"])
    assert paths_of([router]) == ("/a",)
