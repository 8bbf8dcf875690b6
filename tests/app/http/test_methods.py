"""HEAD and OPTIONS, which no route is written for."""

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from app.http.methods import allow
from app.main import create_app, create_operations_app
from app.settings.settings import Settings
from tests.app.fakes import FakeDispatch

GETS = sorted(
    path.replace("{model_name}", "toy").replace("{model_version}", "1")
    for path, operations in create_app(Settings(), FakeDispatch()).openapi()["paths"].items()
    if "get" in operations
)


@pytest.mark.parametrize("path", [*GETS, "/docs", "/openapi.json", "/nowhere", "/v1/classify"])
def test_head_is_answered_as_get_without_a_body(client: TestClient, path: str) -> None:
    """The same status and headers, on every route, and on what is not there."""
    get, head = client.get(path), client.head(path)
    assert head.content == b""
    assert head.status_code == get.status_code
    differing = {"x-request-id", "date"} | (
        {"content-length"} if path in ("/metrics", "/v1/classify", "/v1/stats") else set()
    )
    assert {name: value for name, value in head.headers.items() if name not in differing} == {
        name: value for name, value in get.headers.items() if name not in differing
    }


def test_the_routes_are_all_tried() -> None:
    """Probes, metrics, models and the page are among them."""
    assert {"/", "/livez", "/readyz", "/metrics", "/v1/models", "/v1/stats", "/v2/health/ready"} <= set(GETS)


def test_head_counts_as_such(client: TestClient, metric: Callable[..., float]) -> None:
    """Under its own name and its route."""
    labels = {"route": "/livez", "method": "HEAD", "status": "200"}
    before = metric("trimvit_requests_total", **labels)
    client.head("/livez")
    assert metric("trimvit_requests_total", **labels) == before + 1


def test_head_is_answered_on_the_operations_port() -> None:
    """By its probes and metrics."""

    class Healthy:
        dispatch = FakeDispatch()

        def is_ready(self) -> bool:
            return True

        def look_for_trouble(self) -> None:
            return None

    client = TestClient(create_operations_app(Healthy()))  # type: ignore[arg-type]
    for path in ("/livez", "/readyz", "/metrics"):
        assert client.head(path).status_code == 200


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/livez", "GET, HEAD, OPTIONS"),
        ("/v1/classify", "OPTIONS, POST"),
        ("/", "GET, HEAD, OPTIONS, POST"),
        ("/models/toy", "OPTIONS, POST"),
    ],
)
def test_options_says_what_a_path_takes(client: TestClient, path: str, allowed: str) -> None:
    """In Allow, without a body."""
    response = client.options(path)
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["Allow"] == allowed


def test_options_of_what_is_not_there_is_404(client: TestClient) -> None:
    """As for every other method."""
    assert client.options("/nowhere").status_code == 404


def test_allow_names_what_goes_with_a_method() -> None:
    """HEAD with GET, OPTIONS with all."""
    assert allow({"POST"}) == "OPTIONS, POST"
    assert allow({"GET", "POST"}) == "GET, HEAD, OPTIONS, POST"
