"""Errors that no route of ours raises are problem documents as well."""

from collections.abc import Callable

import pytest
from fastapi import FastAPI, HTTPException
from starlette.testclient import TestClient

from app.errors import QueueFull, TooLarge
from app.http.problems import install_problem_handlers, problem_response
from tests.app.http.problem import assert_problem


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/classify/x", "/%00", "/%ff", "//"])
def test_an_unknown_path_is_a_404_problem(client: TestClient, path: str) -> None:
    """404 names the path and where to look."""
    document = assert_problem(client.get(path), 404, "not-found", "there is no /", "/docs")  # type: ignore[arg-type]
    assert document.title == "There is nothing here"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/classify", "POST"), ("DELETE", "/v1/models", "GET"), ("POST", "/livez", "GET")],
)
def test_another_method_is_a_405_problem(client: TestClient, method: str, path: str, allowed: str) -> None:
    """405 says which method the path takes, in words and in Allow."""
    response = client.request(method, path)
    assert_problem(response, 405, "method-not-allowed", f"{path} takes {allowed}, not {method}")  # type: ignore[arg-type]
    assert response.headers["Allow"] == allowed


def test_the_frameworks_own_errors_are_problems() -> None:
    """What FastAPI raises by itself has the same shape."""
    app = FastAPI()
    install_problem_handlers(app)

    @app.get("/number")
    def number(value: int) -> int:
        return value

    @app.get("/teapot")
    def teapot() -> None:
        raise HTTPException(418, "short and stout", headers={"X-Spout": "1"})

    client = TestClient(app)
    for path, status, words in (
        ("/number?value=x", 422, "valid integer"),
        ("/teapot", 400, "short and stout"),
    ):
        response = client.get(path)
        assert response.status_code == status
        assert response.headers["Content-Type"] == "application/problem+json"
        assert words in response.json()["detail"]
    assert response.headers["X-Spout"] == "1"


def test_a_problem_is_counted_when_it_is_answered(metric: Callable[..., float]) -> None:
    """Refusals are counted by type, with the headers of both the problem and the caller kept."""
    before = metric("trimvit_refusals_total", reason="queue-full")
    response = problem_response(QueueFull("full", retry_after_s=3.2), {"Allow": "POST"})
    assert metric("trimvit_refusals_total", reason="queue-full") == before + 1
    assert response.headers["Retry-After"] == "4"
    assert response.headers["Allow"] == "POST"


def test_an_image_is_named_only_where_one_is_at_fault() -> None:
    """The member `image` is left out rather than null."""
    assert b'"image"' not in bytes(problem_response(TooLarge("much")).body)
    assert b'"image":0' in bytes(problem_response(TooLarge("much", image=0)).body)
