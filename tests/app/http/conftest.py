"""What the tests of `app.http` share: the application on a fake dispatcher, and one way to ask it."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.testclient import TestClient

from app.main import create_app
from app.settings.settings import Settings
from tests.app.fakes import FakeDispatch, encoded

Classify = Callable[..., httpx.Response]


@pytest.fixture
def dispatch() -> FakeDispatch:
    return FakeDispatch()


@pytest.fixture
def make_client(dispatch: FakeDispatch) -> Iterator[Callable[..., TestClient]]:
    """A client of the application with these settings, on ``dispatch``."""
    clients = []

    def make(**settings: object) -> TestClient:
        client = TestClient(create_app(Settings(**settings), dispatch), raise_server_exceptions=False)  # type: ignore[arg-type]
        client.__enter__()
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.__exit__()


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    """A client of the application with the default settings."""
    return make_client()


@pytest.fixture
def classify(client: TestClient) -> Classify:
    """POST /v1/classify with a sound raw image, unless the keyword arguments say otherwise."""

    def post(**request: Any) -> httpx.Response:
        if not request.keys() & {"content", "files", "json"}:
            request["content"] = encoded()
        return client.post("/v1/classify", **request)  # type: ignore[return-value]

    return post


@pytest.fixture
def metric() -> Callable[..., float]:
    """The value of a metric now; 0 where it has none yet."""

    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    return value
