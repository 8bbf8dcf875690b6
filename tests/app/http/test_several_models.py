"""A request names its model, on every route that answers images; without a name the first one answers."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.errors import QueueFull
from models.schedule import Pruning
from tests.app.fakes import LARGER, MODEL, FakeDispatch
from tests.app.http.image_routes import BASE64, IMAGE_ROUTES, SOUND

IN_THE_PATH = [route for route in IMAGE_ROUTES if "{model_name}" in route[0]]
BY_AN_OPTION = [route for route in IMAGE_ROUTES if "{model_name}" not in route[0]]
INFER = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [BASE64]}]}


@pytest.fixture
def dispatch() -> FakeDispatch:
    return FakeDispatch(others=(LARGER,))


def asked(dispatch: FakeDispatch) -> tuple[str, tuple[int, ...]]:
    """The model of the last question, and the size of the pixels that came with it."""
    question = dispatch.questions[-1]
    return question.model, question.pixels.shape[:2]


@pytest.mark.parametrize("route", BY_AN_OPTION, ids=str)
def test_an_option_names_the_model(
    route: tuple[str, str], client: TestClient, dispatch: FakeDispatch
) -> None:
    """The image is prepared as that model sees it."""
    assert IMAGE_ROUTES[route](client, {"model": "larger"}).status_code == 200
    assert asked(dispatch) == ("larger", (42, 70))
    assert dispatch.expected[-1].model == "larger"
    assert IMAGE_ROUTES[route](client, {}).status_code == 200
    assert asked(dispatch) == ("toy", (21, 35))


@pytest.mark.parametrize("route", BY_AN_OPTION, ids=str)
def test_a_name_that_there_is_not_is_not_found(route: tuple[str, str], client: TestClient) -> None:
    """With the nearest name, and all of them."""
    response = IMAGE_ROUTES[route](client, {"model": "large"})
    assert response.status_code == 404
    assert "there is no model 'large'; did you mean larger? models are toy, larger" in response.text.replace(
        "\\u0027", "'"
    )


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/v2/models/larger/infer", INFER),
        ("/v2/models/larger/versions/1/infer", INFER),
        ("/v1/models/larger:predict", {"instances": [{"b64": BASE64}]}),
        ("/models/larger", {"inputs": BASE64}),
    ],
)
def test_a_path_names_the_model(
    path: str, document: dict[str, Any], client: TestClient, dispatch: FakeDispatch
) -> None:
    """Whose labels and input are used; an option may say the same name, and no other."""
    response = client.post(path, json=document)
    assert response.status_code == 200
    assert "larger 0" in response.text
    assert asked(dispatch) == ("larger", (42, 70))
    assert client.post(path, json={**document, "parameters": {"model": "larger"}}).status_code == 200
    other = client.post(path, json={**document, "parameters": {"model": "toy"}})
    assert other.status_code == 422
    assert "leave one out" in other.text


@pytest.mark.parametrize("route", IN_THE_PATH, ids=str)
def test_the_default_models_path_is_not_the_others(
    route: tuple[str, str], client: TestClient, dispatch: FakeDispatch
) -> None:
    """Both are there."""
    assert IMAGE_ROUTES[route](client, {}).status_code == 200
    assert asked(dispatch) == ("toy", (21, 35))


def test_all_images_of_a_request_are_for_one_model(client: TestClient) -> None:
    """The answer names one."""
    images = [{"image": BASE64, "model": "larger"}, {"image": BASE64}]
    response = client.post("/v1/classify", json={"images": images})
    assert response.status_code == 422
    assert response.json()["detail"] == (
        "all images of a request must name the same model: this one names the default one, "
        "the first names 'larger'"
    )
    images[1]["model"] = "larger"
    assert client.post("/v1/classify", json={"images": images}).json()["model"] == "larger"


def test_both_are_listed_and_described(client: TestClient) -> None:
    """By the routes that describe models, the default one first."""
    assert [model["name"] for model in client.get("/v1/models").json()["models"]] == ["toy", "larger"]
    for path in ("/v1/models/larger", "/v2/models/larger", "/v2/models/larger/config"):
        assert client.get(path).json()["name"] == "larger"
    assert client.get("/v2/models/larger/ready").status_code == 200


def test_a_request_is_refused_early_by_what_its_model_costs(
    client: TestClient, dispatch: FakeDispatch
) -> None:
    """Named by the query or by the path."""
    dispatch.refuses_early = QueueFull("full", retry_after_s=1.0)
    for path in ("/v1/classify?model=larger", "/models/larger", "/v1/classify", "/models/toy"):
        assert client.post(path, content=SOUND).status_code == 429
    assert [one.model for one in dispatch.asked_early] == ["larger", "larger", "toy", "toy"]
    assert client.post("/v1/classify?model=nobody", content=SOUND).status_code == 404


def test_a_model_is_found_out_once_a_worker_is_ready(client: TestClient, dispatch: FakeDispatch) -> None:
    """Before the first worker it is not known which models there are."""
    dispatch.model, dispatch.becomes = None, MODEL
    assert client.post("/models/larger", content=SOUND).status_code == 200
    assert dispatch.questions[-1].model == "larger"


OWN = "larger.keep_ratio=0.5,larger.criterion=mad,larger.reducer=fuse,larger.deadline_ms=7000"


@pytest.fixture
def with_defaults(make_client: Callable[..., TestClient]) -> TestClient:
    """The larger model has defaults of its own."""
    return make_client(default_keep_ratio=0.9, model_default=OWN)


@pytest.mark.parametrize("route", BY_AN_OPTION, ids=str)
def test_each_model_has_its_own_defaults(
    route: tuple[str, str], with_defaults: TestClient, dispatch: FakeDispatch
) -> None:
    """On every route; what a request asks for goes before them."""

    def pruning_of(**options: object) -> Pruning:
        assert IMAGE_ROUTES[route](with_defaults, options).status_code == 200
        return dispatch.questions[-1].ask.pruning

    assert pruning_of() == Pruning(0.9, "mean", "drop")
    assert pruning_of(model="larger") == Pruning(0.5, "mad", "fuse")
    assert dispatch.expected[-1].deadline_s == pytest.approx(7, abs=1)
    assert pruning_of(model="larger", keep_ratio=0.75, reducer="drop") == Pruning(0.75, "mad", "drop")


def test_a_path_asks_for_its_models_defaults(with_defaults: TestClient, dispatch: FakeDispatch) -> None:
    """Of other protocols."""
    for path, document in (
        ("/v2/models/larger/infer", INFER),
        ("/v1/models/larger:predict", {"instances": [{"b64": BASE64}]}),
        ("/models/larger", {"inputs": BASE64}),
    ):
        assert with_defaults.post(path, json=document).status_code == 200
        assert dispatch.questions[-1].ask.pruning == Pruning(0.5, "mad", "fuse"), path


def test_defaults_are_told_for_each_model(with_defaults: TestClient) -> None:
    """By the lists of models, and in Triton's configuration."""
    names = ("keep_ratio", "criterion", "reducer", "deadline_ms")
    toy, larger = with_defaults.get("/v1/models").json()["models"]
    assert [toy[f"default_{name}"] for name in names] == [0.9, "mean", "drop", 30_000]
    assert [larger[f"default_{name}"] for name in names] == [0.5, "mad", "fuse", 7000]
    told = with_defaults.get("/v2/models/larger/config").json()["parameters"]
    assert {name: told[name]["string_value"] for name in names} == {
        "keep_ratio": "0.5",
        "criterion": "mad",
        "reducer": "fuse",
        "deadline_ms": "7000",
    }


def test_a_model_waits_for_its_worker_as_long_as_its_own_deadline(
    make_client: Callable[..., TestClient], dispatch: FakeDispatch
) -> None:
    """Named by an option or by the path; the body may take as long as the longest."""
    client = make_client(
        model="toy=x,larger=y", default_deadline_ms=2000, model_default="toy.deadline_ms=4000," + OWN
    )
    for path, seconds in (("/v1/classify?model=larger", 7), ("/models/larger", 7), ("/v1/classify", 4)):
        dispatch.model, dispatch.becomes = None, MODEL
        assert client.post(path, content=SOUND).status_code == 200
        assert dispatch.waits_s.pop() == pytest.approx(seconds, abs=0.9), path
