"""GET /v1/models: what is served, and what may be asked of it."""

from collections.abc import Callable

from starlette.testclient import TestClient

from app.http.schemas import ModelList
from models.schedule import CRITERIA
from tests.app.fakes import FakeEngines
from tests.app.http.problem import assert_problem


def test_the_model_is_described_with_its_defaults(make_client: Callable[..., TestClient]) -> None:
    """Labels, input, patches, stages counted from 1, and what images get that ask for nothing."""
    response = make_client(default_keep_ratio=0.7, default_criterion="mad").get("/v1/models")
    assert response.status_code == 200
    ModelList.model_validate_json(response.content)
    assert response.json() == {
        "models": [
            {
                "name": "toy",
                "labels": [f"label {index}" for index in range(11)],
                "input": {
                    "height": 21,
                    "width": 35,
                    "interpolation": "bilinear",
                    "crop": "center",
                    "crop_share": 1.0,
                },
                "patches": 15,
                "grid": [3, 5],
                "patch_size": [7, 7],
                "patch_stride": [7, 7],
                "stages": [2, 4],
                "criteria": list(CRITERIA),
                "default_keep_ratio": 0.7,
                "default_criterion": "mad",
                "device": "cpu:0",
                "dtype": "float32",
            }
        ]
    }


def test_before_an_engine_is_ready_there_is_no_model(client: TestClient, engines: FakeEngines) -> None:
    """503 with a time to come back."""
    engines.model = None
    response = client.get("/v1/models")
    assert_problem(response, 503, "not-ready", "/readyz")  # type: ignore[arg-type]
    assert response.headers["Retry-After"] == "1"
