"""POST / and POST /models/NAME: image classification in Hugging Face's shape."""

import base64
import math
from collections.abc import Callable

import httpx
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from app.errors import QueueFull
from app.http.routes.hugging_face import _sigmoid
from models.schedule import Pruning
from tests.app.fakes import LOGITS, MODEL, FakeDispatch, encoded

IMAGE = encoded()
BASE64 = base64.b64encode(IMAGE).decode()


def labels_of(response: httpx.Response) -> list[tuple[str, float]]:
    assert response.status_code == 200, response.text
    assert all(set(entry) == {"label", "score"} for entry in response.json())
    return [(entry["label"], entry["score"]) for entry in response.json()]


def error_of(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error: str = response.json()["error"]
    return error


@pytest.mark.parametrize("path", ["/", "/models/toy"])
@pytest.mark.parametrize(
    "request_",
    [
        {"content": IMAGE},
        {"content": IMAGE, "headers": {"Content-Type": "image/png"}},
        {"content": IMAGE, "headers": {"Content-Type": "application/octet-stream"}},
        {"json": {"inputs": BASE64}},
        {"json": {"inputs": "data:image/png;base64," + BASE64, "parameters": {}}},
        {"json": {"inputs": BASE64, "parameters": None}},
        {"json": {"inputs": BASE64, "parameters": {"top_k": None, "function_to_apply": None}}},
        {"json": {"inputs": BASE64, "options": {"wait_for_model": True}}},
    ],
    ids=lambda request: str({**request.get("headers", {}), **request.get("json", {})})[-60:],
)
def test_every_form_of_the_body_gives_labels_and_scores(
    client: TestClient, dispatch: FakeDispatch, path: str, request_: dict[str, object]
) -> None:
    """Raw under any fitting Content-Type or none, or base64: the pixels and the answer of /v1/classify."""
    client.post("/v1/classify", content=IMAGE)
    response = client.post(path, **request_)  # type: ignore[arg-type]
    assert labels_of(response) == [(f"label {place}", 0.5 ** (place + 1)) for place in range(5)]  # type: ignore[arg-type]
    assert response.headers["Server-Timing"].startswith("decode;dur=")
    raw, other = dispatch.questions
    assert np.array_equal(raw.pixels, other.pixels)
    assert raw.ask.pruning == other.ask.pruning


def test_options_come_from_the_parameters_or_from_the_url(client: TestClient, dispatch: FakeDispatch) -> None:
    """The client has no argument for a keep ratio, but takes a URL with a query as its model."""
    parameters = {"top_k": 2, "keep_ratio": 0.5, "criterion": "mad"}
    assert len(labels_of(client.post("/", json={"inputs": BASE64, "parameters": parameters}))) == 2  # type: ignore[arg-type]
    assert len(labels_of(client.post("/", params=parameters, content=IMAGE))) == 2  # type: ignore[arg-type]
    response = client.post("/?compute=0.7&top_k=4", json={"inputs": BASE64, "parameters": parameters})
    assert len(labels_of(response)) == 2  # type: ignore[arg-type]
    assert [question.ask.pruning for question in dispatch.questions] == [Pruning(0.5, "mad")] * 3


@pytest.mark.parametrize(
    ("function", "scores"),
    [
        ("softmax", [0.5, 0.25, 0.125]),
        ("sigmoid", [1 / (1 + math.exp(-logit)) for logit in LOGITS[:3]]),
        ("none", list(LOGITS[:3])),
    ],
)
def test_function_to_apply_is_applied_to_the_logits(
    client: TestClient, dispatch: FakeDispatch, function: str, scores: list[float]
) -> None:
    """Softmax is the worker's own; the others ask it for the logits."""
    document = {"inputs": BASE64, "parameters": {"function_to_apply": function, "top_k": 3}}
    of_json = labels_of(client.post("/", json=document))  # type: ignore[arg-type]
    of_url = labels_of(client.post(f"/?function_to_apply={function}&top_k=3", content=IMAGE))  # type: ignore[arg-type]
    assert [label for label, _ in of_json] == ["label 0", "label 1", "label 2"]
    assert [score for _, score in of_json] == pytest.approx(scores)
    assert of_url == of_json
    assert {question.ask.logits for question in dispatch.questions} == {function != "softmax"}


def test_no_function_is_the_models_own(client: TestClient, dispatch: FakeDispatch) -> None:
    """Of a model with several labels an image the sigmoids, which the worker gives; the others are of the
    logits."""
    dispatch.model = msgspec.structs.replace(MODEL, scores="sigmoid")
    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum()
    wanted = {
        "": [0.5, 0.25, 0.125],
        "sigmoid": [0.5, 0.25, 0.125],
        "softmax": softmax[:3],
        "none": LOGITS[:3],
    }
    for function, scores in wanted.items():
        given_ = {"function_to_apply": function} if function else {}
        response = client.post("/", params={"top_k": 3, **given_}, content=IMAGE)
        assert [score for _, score in labels_of(response)] == pytest.approx(list(scores), rel=1e-6)  # type: ignore[arg-type]
    assert [question.ask.logits for question in dispatch.questions] == [False, False, True, True]


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_sigmoid_is_between_0_and_1_and_rises(one: float, other: float) -> None:
    """It overflows for no logit; far out it is 0 or 1."""
    low, high = sorted((one, other))
    assert 0 <= _sigmoid(low) <= _sigmoid(high) <= 1
    assert _sigmoid(low) == pytest.approx(1 - _sigmoid(-low))


def test_a_name_may_have_slashes_and_another_one_is_not_found(
    client: TestClient, dispatch: FakeDispatch
) -> None:
    """404 says which model there is."""
    assert error_of(client.post("/models/vit", content=IMAGE), 404) == (  # type: ignore[arg-type]
        "there is no model 'vit'; allowed is 'toy'"
    )
    dispatch.model = msgspec.structs.replace(MODEL, name="hf-hub:owner/name")
    assert labels_of(client.post("/models/hf-hub:owner/name", content=IMAGE))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"content": b""}, 422, ["empty"]),
        ({"content": b"no image"}, 422, ["not an image"]),
        ({"content": b"no image", "headers": {"Content-Type": "text/plain"}}, 415, ["text/plain", "image/*"]),
        ({"files": {"image": IMAGE}}, 415, ["multipart/form-data", "application/json"]),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, ["JSON"]),
        ({"json": [BASE64]}, 400, ["'inputs'"]),
        ({"json": {"image": BASE64}}, 422, ["'inputs'", "base64"]),
        ({"json": {"inputs": [BASE64]}}, 422, ["'inputs'", "base64"]),
        ({"json": {"inputs": "%%%"}}, 400, ["'inputs'", "base64"]),
        ({"json": {"inputs": BASE64, "parameters": [1]}}, 422, ["'parameters'", "object"]),
        (
            {"json": {"inputs": BASE64, "parameters": {"top_k": 0}}},
            422,
            ["top_k must be a whole number from 1 to 1000, such as 5; got 0"],
        ),
        ({"json": {"inputs": BASE64, "parameters": {"topk": 1}}}, 422, ["'topk'", "keep_ratio"]),
        ({"json": {"inputs": BASE64, "parameters": {"keep_ratio": 0}}}, 422, ["keep_ratio"]),
        (
            {"json": {"inputs": BASE64, "parameters": {"function_to_apply": "tanh"}}},
            422,
            ["function_to_apply must be 'softmax', 'sigmoid' or 'none'; got 'tanh'"],
        ),
        ({"json": {"inputs": BASE64, "parameters": {"function_to_apply": ["none"]}}}, 422, ["softmax"]),
        ({"json": {"inputs": BASE64, "parameters": {"mask": "png"}}}, 422, ["mask", "/v1/classify"]),
        ({"content": IMAGE, "params": [("top_k", "1"), ("top_k", "2")]}, 422, ["more than once"]),
    ],
)
def test_what_is_wrong_is_refused_in_the_shape_that_the_client_shows(
    client: TestClient, request_: dict[str, object], status: int, words: list[str]
) -> None:
    """Words that say what was wrong and what is allowed, without the number of the only image."""
    error = error_of(client.post("/", **request_), status)  # type: ignore[arg-type]
    for word in words:
        assert word in error, error
    assert "image 0" not in error


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({"keep_ratio": 0.5}, ["'keep_ratio'", '"parameters": {"keep_ratio": ...}']),
        ({"top-k": 2}, ["'top-k'", '"parameters": {"top_k": ...}']),
        ({"function_to_apply": "none"}, ["function_to_apply", "parameters"]),
        ({"params": {"top_k": 2}}, ["'params'; did you mean parameters"]),
    ],
)
def test_options_at_a_place_that_is_not_read_are_refused(
    client: TestClient, dispatch: FakeDispatch, beside: dict[str, object], words: list[str]
) -> None:
    """They would be ignored without a word otherwise; what else clients send is."""
    error = error_of(client.post("/", json={"inputs": BASE64, **beside}), 422)  # type: ignore[arg-type]
    for word in words:
        assert word in error
    assert dispatch.questions == []
    assert client.post("/", json={"inputs": BASE64, "stream": False}).is_success


def test_limits_are_those_of_v1(make_client: Callable[..., TestClient]) -> None:
    """Bytes and pixels."""
    client = make_client(max_body_bytes=400, max_image_pixels=100)
    assert "at most 400" in error_of(client.post("/", content=bytes(401)), 413)  # type: ignore[arg-type]
    assert "at most 100" in error_of(client.post("/", content=encoded()), 413)  # type: ignore[arg-type]


def test_a_full_queue_says_when_to_come_back(client: TestClient, dispatch: FakeDispatch) -> None:
    """Status and headers are those of /v1."""
    dispatch.fails = QueueFull("full", retry_after_s=2)
    response = client.post("/", content=IMAGE)
    assert error_of(response, 429) == "full"  # type: ignore[arg-type]
    assert response.headers["Retry-After"] == "2"
