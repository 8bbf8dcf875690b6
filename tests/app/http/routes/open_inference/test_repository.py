"""/v2/repository: models that are listed, loaded and unloaded while others are served."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.errors import InsufficientMemory, Problem, RepositoryConflict
from app.messages.repository import ModelEntry
from tests.app.fakes import FakeDispatch, encoded

ENTRIES = (
    ModelEntry("toy", "ready"),
    ModelEntry("owner/small", "unloaded", "there is no file"),
    ModelEntry("large", "loading"),
)
MakeClient = Callable[..., TestClient]


@pytest.fixture
def repository(make_client: MakeClient, dispatch: FakeDispatch) -> TestClient:
    dispatch.repository = ENTRIES
    return make_client(model_repository=True)


def ask(client: TestClient, path: str, **request: Any) -> tuple[int, Any]:
    response = client.post(f"/v2/repository/{path}", **request)
    return response.status_code, response.json()


def test_the_index_has_tritons_words(repository: TestClient) -> None:
    """Of all models, or of those that are served."""
    models = [
        {"name": "toy", "version": "1", "state": "READY", "reason": ""},
        {"name": "owner/small", "version": "1", "state": "UNAVAILABLE", "reason": "there is no file"},
        {"name": "large", "version": "1", "state": "LOADING", "reason": ""},
    ]
    assert ask(repository, "index") == (200, models)
    assert ask(repository, "index", json={"ready": True}) == (200, models[:1])


def test_models_are_loaded_and_unloaded(repository: TestClient, dispatch: FakeDispatch) -> None:
    """By names, which may have slashes; Triton's clients send a body or none."""
    loaded = {"name": "owner/small", "version": "1", "state": "READY", "reason": ""}
    assert ask(repository, "models/owner/small/load") == (200, loaded)
    assert ask(repository, "models/owner/small/load", json={}) == (200, loaded)
    options = {"parameters": {"unload_dependents": False}}
    status, told = ask(repository, "models/owner/small/unload", json=options)
    assert (status, told["state"]) == (200, "UNAVAILABLE")
    assert dispatch.changes == [("owner/small", True), ("owner/small", True), ("owner/small", False)]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("index", {"repository_name": "x"}, 422, "must not have 'repository_name'; allowed: ready"),
        ("index", {"ready": 1}, 422, "ready must be true or false, not 1"),
        ("index", [], 422, "must be an object"),
        ("models/toy/load", {"parameters": {"config": "{}"}}, 422, "must not have 'config'; none is taken"),
        ("models/toy/load", {"parameters": 3}, 422, "parameters must be an object, not 3"),
        ("models/toy/load", {"model": "x"}, 422, "must not have 'model'; allowed: parameters"),
        ("models/toy/unload", {"parameters": {"unload_dependents": "no"}}, 422, "must be true or false"),
        ("models/toy/unload", {"parameters": {"force": True}}, 422, "allowed: unload_dependents"),
        ("models/smal/load", {}, 404, "there is no model 'smal'"),
        ("models/owner/smal/load", {}, 404, "did you mean"),
        ("models//etc/passwd/load", {}, 404, "there is no"),
    ],
)
def test_what_is_not_taken_is_refused_in_words(
    repository: TestClient, dispatch: FakeDispatch, path: str, body: object, status: int, words: str
) -> None:
    answered, told = ask(repository, path, json=body)
    assert (answered, words in told["error"]) == (status, True), told
    assert dispatch.changes == []


def test_a_body_that_is_no_json_is_refused(repository: TestClient) -> None:
    assert ask(repository, "models/toy/load", content=b"{")[0] == 400
    assert ask(repository, "models/toy/load", content=b"[" * 100_000)[0] in (400, 413)


@pytest.mark.parametrize(
    "problem",
    [RepositoryConflict("busy", retry_after_s=1.0), InsufficientMemory("it takes 3 GB")],
    ids=lambda problem: problem.slug,
)
def test_why_it_was_not_done_is_told(
    repository: TestClient, dispatch: FakeDispatch, problem: Problem
) -> None:
    dispatch.change_fails = problem
    assert ask(repository, "models/owner/small/load") == (problem.status, {"error": problem.detail})


def test_a_model_that_is_not_loaded_is_said_to_be_so(repository: TestClient) -> None:
    """On every route that names one."""
    words = "the model 'owner/small' is not loaded; loaded models: 'toy'"
    response = repository.post("/v1/classify?model=owner/small", content=encoded())
    assert (response.status_code, response.json()["detail"]) == (404, words)
    response = repository.get("/v2/models/owner/small/config")
    assert (response.status_code, response.json()["error"]) == (404, words)


def test_a_request_is_for_its_model_until_it_is_answered(
    repository: TestClient, dispatch: FakeDispatch
) -> None:
    """The model is not dropped meanwhile."""
    repository.post("/v1/classify", content=encoded()).raise_for_status()
    assert dispatch.used == [dispatch.model]


def test_before_a_worker_has_been_there_nothing_is_listed(make_client: MakeClient) -> None:
    assert ask(make_client(model_repository=True), "index")[0] == 503


def test_without_the_setting_there_is_no_repository(client: TestClient) -> None:
    """The sentence says how it is switched on."""
    status, told = ask(client, "index")
    assert status == 404
    assert "--model-repository" in told["error"]
    assert "model_repository" not in client.get("/v2").json()["extensions"]


def test_it_is_named_among_the_extensions_and_documented(repository: TestClient) -> None:
    assert "model_repository" in repository.get("/v2").json()["extensions"]
    assert "/v2/repository/models/{model_name}/load" in repository.get("/openapi.json").json()["paths"]


def test_only_a_marked_key_may_change_models(
    make_client: MakeClient, dispatch: FakeDispatch, tmp_path: Path
) -> None:
    """Any key may list."""
    dispatch.repository = ENTRIES
    path = tmp_path / "keys"
    path.write_text("caller:key-of-a-caller-1234\noperator:key-of-an-operator-1 admin\n")
    client = make_client(model_repository=True, api_keys_file=path)
    caller, operator = ({"X-API-Key": key} for key in ("key-of-a-caller-1234", "key-of-an-operator-1"))
    assert ask(client, "models/owner/small/load")[0] == 401
    status, told = ask(client, "models/owner/small/load", headers=caller)
    assert status == 403
    assert "name:key admin" in told["error"]
    assert ask(client, "index", headers=caller)[0] == 200
    assert dispatch.changes == []
    assert ask(client, "models/owner/small/load", headers=operator)[0] == 200


@pytest.mark.parametrize("path", ["/v2/models/{}/ready", "/v2/models/{}/versions/1/ready", "/v1/models/{}"])
def test_a_model_that_may_be_loaded_is_not_ready(repository: TestClient, path: str) -> None:
    """503; of a name that nobody knows 404. What to do is told, and when to come back while it loads."""
    response = repository.get(path.format("owner/small"))
    assert (response.status_code, response.headers.get("Retry-After")) == (503, None)
    assert response.json()["error"] == (
        "the model 'owner/small' is not loaded; load it with POST /v2/repository/models/owner/small/load "
        "(the "
        "last load failed: there is no file)"
    )
    response = repository.get(path.format("large"))
    assert (response.status_code, response.headers.get("Retry-After")) == (503, "1")
    assert response.json()["error"] == "the model 'large' is loading"
    assert repository.get(path.format("toy")).status_code == 200
    assert repository.get(path.format("nobody")).status_code == 404
    assert repository.get("/v2/models/large/versions/2/ready").status_code == 404
    assert repository.post("/v2/models/large/infer", json={"inputs": []}).status_code == 404
