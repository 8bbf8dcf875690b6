"""Errors that no route of ours raises are problem documents as well."""

from collections.abc import Callable

import pytest
from fastapi import FastAPI, HTTPException
from starlette.testclient import TestClient

from app.errors import QueueFull, TooLarge
from app.http.problems import install_problem_handlers, problem_response
from tests.app.http.problem import assert_problem


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/classify/x", "/%00", "/%ff"])
def test_an_unknown_path_is_a_404_problem(client: TestClient, path: str) -> None:
    """404 names the path and where to look, as test_unknown_paths.py has it."""
    document = assert_problem(client.get(path), 404, "not-found", "there is no /", "; ")  # type: ignore[arg-type]
    assert document.title == "Not found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/classify", "POST"), ("DELETE", "/v1/models", "GET"), ("POST", "/livez", "GET")],
)
def test_another_method_is_a_405_problem(client: TestClient, method: str, path: str, allowed: str) -> None:
    """405 says which method the path takes, in words, and in Allow with those that go with it."""
    response = client.request(method, path)
    assert_problem(response, 405, "method-not-allowed", f"{path} supports {allowed}, not {method}")  # type: ignore[arg-type]
    assert response.headers["Allow"] == {"POST": "OPTIONS, POST", "GET": "GET, HEAD, OPTIONS"}[allowed]


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
    response = problem_response(QueueFull("full", retry_after_s=3.2), "/v1/classify", {"Allow": "POST"})
    assert metric("trimvit_refusals_total", reason="queue-full") == before + 1
    assert response.headers["Retry-After"] == "4"
    assert response.headers["Allow"] == "POST"


def test_an_image_is_named_only_where_one_is_at_fault() -> None:
    """The member `image` is left out rather than null."""
    assert b'"image"' not in bytes(problem_response(TooLarge("much"), "/v1/classify").body)
    assert b'"image":0' in bytes(problem_response(TooLarge("much", image=0), "/v1/classify").body)


@pytest.mark.parametrize("path", ["/", "/v2", "/v2/models/toy/infer", "/models/toy"])
def test_clients_that_others_wrote_get_the_error_they_show(path: str) -> None:
    """On their routes the answer is {"error": ...} with the same status and headers, naming the image."""
    response = problem_response(QueueFull("it is full", retry_after_s=3.2), path, {"Allow": "POST"})
    assert (response.status_code, response.body) == (429, b'{"error":"it is full"}')
    assert (response.headers["Retry-After"], response.headers["Allow"]) == ("4", "POST")
    assert response.headers["Content-Type"] == "application/json"
    response = problem_response(TooLarge("too many pixels", image=2), path)
    assert response.body == b'{"error":"image 2: too many pixels"}'


@pytest.mark.parametrize("path", ["/v1/classify", "/v22", "/models", "/nowhere"])
def test_all_other_paths_get_a_problem_document(path: str) -> None:
    """Only the routes of those protocols have the other shape."""
    response = problem_response(TooLarge("much"), path)
    assert response.headers["Content-Type"] == "application/problem+json"
