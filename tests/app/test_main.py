"""The application as a whole: its pages, and its client's life."""

import re
from urllib.parse import urljoin

import pytest
from starlette.testclient import TestClient

from app.dispatch.client import DispatchClient
from app.main import create_app
from app.settings.settings import Settings
from tests.app.dispatch.rig import FakeBackend, House, served, wait_for
from tests.app.fakes import FakeDispatch, encoded


def test_the_openapi_document_and_its_page_are_served() -> None:
    """/docs shows /openapi.json, and loads nothing from another host; its paths are relative."""
    client = TestClient(create_app(Settings(), FakeDispatch()))
    document = client.get("/openapi.json")
    assert document.status_code == 200
    assert document.json()["info"]["title"] == "TrimViT"
    page = client.get("/docs")
    assert page.status_code == 200
    assert re.search(r"url: '([^']+)'", page.text)[1] == "openapi.json"  # type: ignore[index]
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert loaded
    for reference in loaded:
        assert "//" not in reference, reference
        assert client.get(urljoin("/docs", reference)).status_code == 200, reference


@pytest.mark.parametrize("path", ["/redoc", "/docs/../etc/passwd", "/static-offline-docs/../main.py"])
def test_nothing_else_is_served(path: str) -> None:
    """Pages that are not ours, and paths out of the folder, are 404."""
    client = TestClient(create_app(Settings(), FakeDispatch()))
    response = client.get(path)
    assert response.status_code == 404
    assert response.headers["Content-Type"] == "application/problem+json"


def test_a_client_lives_as_long_as_the_application(house: House) -> None:
    """The application connects to the dispatcher at its start, answers by it, and disconnects at its end."""
    asked = DispatchClient(house.path, house.slots())
    with served(house, FakeBackend()) as dispatcher:
        with TestClient(create_app(Settings(), asked)) as client:
            while client.get("/readyz").status_code != 200:
                pass
            response = client.post(
                "/v1/classify", content=encoded(), params={"mask": "grid", "keep_ratio": 0.5}
            )
            assert response.status_code == 200, response.text
            (result,) = response.json()["results"]
            assert result["patches"]["per_stage"] == [8, 4]
            assert result["mask"][0]["grid"][2] == [0, 1, 1, 1, 1]
            assert "1 front ends" in repr(dispatcher)
        wait_for(lambda: "0 front ends" in repr(dispatcher), "the end of the connection")
