"""Direct routes are found as the framework would find them, and answer their problems themselves."""

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from app.errors import InvalidValue
from app.http.routes.direct import DirectRoute, include


@pytest.fixture
def client() -> TestClient:
    """Of an application with two direct routes, and one that is not, below the same folder."""
    router = APIRouter(route_class=DirectRoute)

    @router.post("/whole")
    async def whole(request: Request) -> Response:
        return PlainTextResponse(f"whole {request.scope['route'].path_format}")

    @router.post("/folder/{name}")
    async def named(request: Request, name: str) -> Response:
        if name == "wrong":
            raise InvalidValue("it is wrong")
        return PlainTextResponse(f"{name} {request.scope['route'].path_format}")

    app = FastAPI()
    include(app, [router])

    @app.get("/folder/{name}")
    async def read(name: str) -> str:
        return f"read {name}"

    return TestClient(app)


def test_each_is_called_with_its_parameters(client: TestClient) -> None:
    """Metrics name it by its pattern."""
    assert client.post("/whole").text == "whole /whole"
    assert client.post("/folder/some").text == "some /folder/{name}"


def test_other_methods_and_paths_go_to_the_framework(client: TestClient) -> None:
    """Also those of a path that a direct route has."""
    assert client.get("/folder/some").json() == "read some"
    assert client.get("/whole").status_code == 405
    assert client.post("/nowhere").status_code == 404


def test_a_problem_is_answered_in_words(client: TestClient) -> None:
    """As problem+json."""
    answer = client.post("/folder/wrong")
    assert (answer.status_code, answer.json()["detail"]) == (422, "it is wrong")
