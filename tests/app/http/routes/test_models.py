"""GET /v1/models: what is served, and what may be asked of it."""

from collections.abc import Callable
from dataclasses import replace

import msgspec
from starlette.testclient import TestClient

from app.http.schemas import ModelList
from models.cascade import Cascade
from models.paca import Paca
from models.schedule import CRITERIA, REDUCERS
from tests.app.fakes import MODEL, FakeDispatch
from tests.app.http.problem import assert_problem


def test_the_model_is_described_with_its_defaults(make_client: Callable[..., TestClient]) -> None:
    """Labels, input, patches, stages counted from 1, and what images get that ask for nothing."""
    response = make_client(default_keep_ratio=0.7, default_criterion="mad", default_reducer="fuse").get(
        "/v1/models"
    )
    assert response.status_code == 200
    ModelList.model_validate_json(response.content)
    assert response.json() == {
        "models": [
            {
                "name": "toy",
                "labels": [f"label {index}" for index in range(11)],
                "embedding_size": 22,
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
                "evenly": False,
                "static_blocks": [],
                "cluster_blocks": [],
                "criteria": list(CRITERIA),
                "reducers": list(REDUCERS),
                "default_keep_ratio": 0.7,
                "default_criterion": "mad",
                "default_reducer": "fuse",
                "default_deadline_ms": 30_000,
                "scores": "softmax",
                "cascade": {
                    "keep_ratio": 0.5,
                    "criterion": "iqr",
                    "reducer": "fuse",
                    "agreement": 0.99,
                    "compute": 0.8125,
                },
                "device": "cpu:0",
                "dtype": "float32",
            }
        ]
    }


def test_defaults_are_the_checkpoints_where_the_settings_say_nothing(client: TestClient) -> None:
    """What an image gets that asks for nothing is what it says here."""
    (model,) = client.get("/v1/models").json()["models"]
    assert (model["default_criterion"], model["default_reducer"]) == ("mean", "drop")


def test_a_checkpoint_without_a_cascade_says_so(client: TestClient, dispatch: FakeDispatch) -> None:
    """null, rather than nothing; and a cascade that merges reads no criterion."""
    for cascade, described in (
        (None, None),
        (
            Cascade(0.3, "mad", "merge", 0.5, 0.9, 40, 1.5),
            {"keep_ratio": 0.3, "criterion": None, "reducer": "merge", "agreement": 0.9, "compute": 1.5},
        ),
    ):
        dispatch.model = msgspec.structs.replace(MODEL, cascade=cascade)
        response = client.get("/v1/models")
        ModelList.model_validate_json(response.content)
        assert response.json()["models"][0]["cascade"] == described


def test_it_says_which_blocks_have_other_attention(client: TestClient, dispatch: FakeDispatch) -> None:
    """Static attention, and attention to clusters; counted from 1, as stages are."""
    arch = replace(MODEL.architecture, static_blocks=2, paca=Paca((2, 4), 7))
    dispatch.model = msgspec.structs.replace(MODEL, architecture=arch)
    (model,) = client.get("/v1/models").json()["models"]
    assert (model["static_blocks"], model["cluster_blocks"]) == ([1, 2], [3, 5])


def test_before_a_worker_is_ready_there_is_no_model(client: TestClient, dispatch: FakeDispatch) -> None:
    """503 with a time to come back."""
    dispatch.model = None
    response = client.get("/v1/models")
    assert_problem(response, 503, "not-ready", "/readyz")  # type: ignore[arg-type]
    assert response.headers["Retry-After"] == "1"
