"""KServe's protocol v1: what is predicted, and what is refused in words."""

import base64
import json
from typing import Any

import httpx
import msgspec
import pytest
from starlette.testclient import TestClient

from app.http.routes.kserve_v1 import PredictResponse
from tests.app.fakes import MODEL, FakeDispatch, encoded, picture

SOUND = encoded()
BASE64 = base64.b64encode(SOUND).decode()
PREDICT = "/v1/models/toy:predict"


def predicted(client: TestClient, document: Any, path: str = PREDICT) -> httpx.Response:
    return client.post(path, json=document)  # type: ignore[return-value]


def error_of(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error: str = response.json()["error"]
    return error


@pytest.mark.parametrize(
    "instance",
    [
        {"image": {"b64": BASE64}},
        {"image_bytes": {"b64": BASE64}},
        {"input_1": {"b64": BASE64}},
        {"b64": BASE64},
        {"data": BASE64},
        {"content": BASE64},
        {"image": BASE64},
        {"image": f"data:image/png;base64,{BASE64}"},
        BASE64,
    ],
    ids=lambda instance: "/".join(instance) if isinstance(instance, dict) else "text",
)
def test_an_instance_has_its_image_in_the_form_of_any_of_the_servers(
    client: TestClient, instance: dict[str, Any] | str
) -> None:
    """KServe's, TensorFlow Serving's, Vertex AI's, TorchServe's; the prediction is /v1/classify's result."""
    response = predicted(client, {"instances": [instance]})
    assert response.status_code == 200, response.text
    PredictResponse.model_validate_json(response.content)
    assert response.json() == {"predictions": client.post("/v1/classify", content=SOUND).json()["results"]}


def test_requests_of_other_servers_clients_are_understood(client: TestClient) -> None:
    """TensorFlow's default signature, and a curl that says nothing of JSON; another signature is refused."""
    document = {"signature_name": "serving_default", "instances": [BASE64]}
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post(PREDICT, content=json.dumps(document), headers=headers).status_code == 200
    assert "'signature_name'" in error_of(predicted(client, {**document, "signature_name": "features"}), 422)


def test_members_that_are_null_are_as_if_not_there(client: TestClient) -> None:
    """As programs write what is not set, also under the names of an image."""
    instance = {"image": None, "b64": BASE64, "keep_ratio": None, "top_k": None, "errors": None}
    document = {"instances": [instance], "parameters": None}
    assert client.post("/v1/models/toy:predict", json=document).status_code == 200


def test_predictions_come_in_the_order_of_the_instances_each_with_its_options(
    client: TestClient, dispatch: FakeDispatch
) -> None:
    """An instance's own go before the parameters, and those before the query's."""
    other = base64.b64encode(encoded(picture(60, 30))).decode()
    document = {
        "instances": [{"b64": BASE64, "keep_ratio": 0.3}, {"image": {"b64": other}}],
        "parameters": {"keep_ratio": 0.5, "top_k": 2},
    }
    predictions = predicted(client, document, f"{PREDICT}?criterion=mad&top_k=7").json()["predictions"]
    assert [prediction["keep_ratio"] for prediction in predictions] == [0.3, 0.5]
    assert [len(prediction["labels"]) for prediction in predictions] == [2, 2]
    assert {question.ask.pruning.criterion for question in dispatch.questions} == {"mad"}


@pytest.mark.parametrize(
    ("document", "status", "words"),
    [
        ({}, 400, 'a list of instances, such as {"instances": [{"b64": "..."}]}'),
        ([], 400, "a list of instances"),
        ({"instances": []}, 400, "the list of instances is empty"),
        ({"instances": {"b64": BASE64}}, 400, "a list of instances"),
        ({"inputs": [BASE64]}, 400, "a list of instances"),
        ({"instances": [BASE64], "parameter": {}}, 422, "did you mean parameters"),
        ({"instances": [BASE64], "parameters": [1]}, 422, 'an object, such as {"keep_ratio": 0.5}'),
        ({"instances": [BASE64], "parameters": {"keep_ratoi": 1}}, 422, "did you mean keep_ratio"),
        ({"instances": [BASE64, {}]}, 422, "image 1: the instance has no image: give one, as image"),
        ({"instances": [{"b64": BASE64, "image": BASE64}]}, 422, "the instance has more than one image"),
        ({"instances": [{"image": [[0, 1]]}]}, 422, "for pixels as numbers, use /v2/models/NAME/infer"),
        ({"instances": [[[0.5, 0.5]]]}, 422, "for pixels as numbers, use /v2/models/NAME/infer"),
        ({"instances": [[0] * 9000]}, 413, "for pixels as numbers, use /v2/models/NAME/infer"),
        ({"instances": [BASE64] * 65}, 413, "the request has 65 images; at most 64 are allowed"),
        ({"instances": [{"b64": "%%%"}]}, 400, "image 0: "),
        ({"instances": [base64.b64encode(b"no image").decode()]}, 422, "image 0: "),
    ],
    ids=str,
)
def test_what_cannot_be_predicted_is_refused_in_words(
    client: TestClient, dispatch: FakeDispatch, document: Any, status: int, words: str
) -> None:
    """In the shape that clients of /v2 know, too, naming the instance at fault."""
    assert words in error_of(predicted(client, document), status)
    assert dispatch.questions == []


def test_another_model_is_not_found(client: TestClient) -> None:
    """404 names the one there is; other verbs are told by the one that is offered."""
    assert error_of(predicted(client, {}, "/v1/models/vit:predict"), 404) == (
        "there is no model 'vit'; allowed is 'toy'"
    )
    assert error_of(client.get("/v1/models/vit"), 404) == "there is no model 'vit'; allowed is 'toy'"  # type: ignore[arg-type]
    for verb in ("explain", "classify", "regress"):
        error = error_of(predicted(client, {}, f"/v1/models/toy:{verb}"), 404)
        assert "POST /v1/models/NAME:predict" in error


def test_the_model_is_ready_where_the_server_is(client: TestClient, dispatch: FakeDispatch) -> None:
    """In KServe's words, at once; /v1/models still lists it in full."""
    assert client.get("/v1/models/toy").json() == {"name": "toy", "ready": True}
    assert client.get("/v1/models").json()["models"][0]["name"] == "toy"
    dispatch.model, dispatch.was_ready = None, True
    assert "/readyz" in error_of(client.get("/v1/models/toy"), 503)  # type: ignore[arg-type]
    assert dispatch.waits_s == []


def test_a_name_may_have_slashes_and_colons(client: TestClient, dispatch: FakeDispatch) -> None:
    """As the names of models from the hub have."""
    dispatch.model = msgspec.structs.replace(MODEL, name="hf-hub:owner/näme")
    assert client.get("/v1/models/hf-hub:owner/näme").json()["ready"] is True
    response = predicted(client, {"instances": [BASE64]}, "/v1/models/hf-hub:owner/näme:predict")
    assert len(response.json()["predictions"]) == 1
