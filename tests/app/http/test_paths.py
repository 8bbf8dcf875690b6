"""The paths that are listed, against the routes that are served."""

from collections.abc import Callable, Iterable, Iterator

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.testclient import TestClient

from app.http.paths import FAVICON, PATHS, UNLISTED, is_public, known

# The framework serves these, or nobody does.
NOT_OURS = {"/openapi.json", "/static-offline-docs/", FAVICON.path}


def paths_in(routes: Iterable[BaseRoute]) -> Iterator[str]:
    """The paths of API routes, also of those in routers that newer FastAPI includes as they are."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route.path
        elif (router := getattr(route, "original_router", None)) is not None:
            yield from paths_in(router.routes)


@pytest.fixture
def served(make_client: Callable[..., TestClient]) -> list[str]:
    """The paths of the application's routes, as they are written there; with those that a setting adds."""
    client = make_client(model_repository=True)
    assert isinstance(client.app, FastAPI)
    paths = list(paths_in(client.app.routes))
    assert len(paths) > len(PATHS)
    return paths


def test_every_route_is_listed(served: list[str]) -> None:
    """A route whose attributes nobody chose does not pass; one with a name in its path is below a folder."""
    assert [path for path in served if "{" not in path and known(path).path != path] == []
    assert [path for path in served if "{" in path and not known(path).path.endswith("/")] == []


def test_every_listed_path_has_a_route(served: list[str]) -> None:
    """None is left over from a route that has gone."""
    listed = {each.path for each in PATHS} - NOT_OURS
    assert [path for path in listed if not any(each.startswith(path) for each in served)] == []


def test_what_is_public_is_decided_here_too() -> None:
    """Opening one more path is a decision: write it here, and in docs/security.md."""
    assert {each.path for each in PATHS if each.public} == {
        "/", "/favicon.ico", "/livez", "/readyz", "/ping", "/metrics", "/docs", "/openapi.json",
        "/v2/health/live", "/v2/health/ready", "/static/", "/static-offline-docs/",
    }  # fmt: skip
    assert is_public("HEAD", "/static/1/page.js")
    assert not is_public("GET", "/v1/classify")
    assert not is_public("POST", "/")


def test_what_is_answered_while_the_server_stops() -> None:
    """An orchestrator must not kill a server that drains, and Prometheus wants its last counts."""
    assert {each.path for each in PATHS if each.while_stopping} == {"/livez", "/metrics"}


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("/", True),
        ("/v2", True),
        ("/v2/anything", True),
        ("/models/one", True),
        ("/v1/models/one:predict", True),
        ("/v1/models", False),
        ("/v1/classify", False),
        ("/v2x", False),
        ("/nothing", False),
    ],
)
def test_errors_have_the_form_of_the_protocol_whose_path_it_is(path: str, *, plain: bool) -> None:
    """Also where no route answers."""
    assert known(path).plain_errors == plain


@pytest.mark.parametrize("path", ["", "/nothing", "/livez/", "//", "/static", "/v1/statsx"])
def test_a_path_that_is_not_listed_is_closed(path: str) -> None:
    """Whoever adds a route opens nothing."""
    assert known(path) is UNLISTED
    assert not is_public("GET", path)


def test_no_path_is_listed_twice() -> None:
    """The second entry would never be found."""
    paths = [each.path for each in PATHS]
    assert len(paths) == len(set(paths))
