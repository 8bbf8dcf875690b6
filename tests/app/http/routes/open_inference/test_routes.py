"""/v2, the Open Inference Protocol: what is served, what reaches the dispatcher, and how errors are told."""

import base64
import gzip
import json
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from app.dispatch.client import Question, Slot
from app.errors import DeadlinePassed, QueueFull
from app.http.routes.open_inference.schemas import InferResponse, ModelConfig, ModelMetadata
from app.http.routes.open_inference.tensors import HEADER_LENGTH, write_elements
from app.main import create_app
from app.messages.to_front_end import Answer
from app.settings.settings import Settings
from models.schedule import Pruning
from tests.app.fakes import (
    FEATURES,
    HEADLESS,
    LOGITS,
    MODEL,
    FakeDispatch,
    TroubledDecoders,
    cost,
    encoded,
    kept_patches,
    picture,
)
from tests.support.examples import examples

IMAGE = encoded()
BASE64 = base64.b64encode(IMAGE).decode()
INFER = "/v2/models/toy/infer"
IN_MEMORY = {"shared_memory_region": "r", "shared_memory_byte_size": 4}


def image_input(*images: str, **changes: object) -> dict[str, Any]:
    return {"name": "image", "shape": [len(images)], "datatype": "BYTES", "data": list(images), **changes}


def asked(client: TestClient, *images: str, model: str = "toy", **members: Any) -> httpx.Response:
    """POST infer in JSON, with one sound image unless told otherwise."""
    document = {"inputs": [image_input(*(images or (BASE64,)))], **members}
    return client.post(f"/v2/models/{model}/infer", json=document)  # type: ignore[return-value]


def binary_body(document: dict[str, Any], *parts: bytes) -> tuple[bytes, dict[str, str]]:
    text = json.dumps(document).encode()
    return b"".join((text, *parts)), {HEADER_LENGTH: str(len(text))}


def outputs_of(response: httpx.Response) -> dict[str, dict[str, Any]]:
    assert response.status_code == 200, response.text
    InferResponse.model_validate_json(response.content)
    return {output["name"]: output for output in response.json()["outputs"]}


def error_of(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    assert set(response.json()) == {"error"}
    error: str = response.json()["error"]
    return error


def names(*outputs: str) -> list[dict[str, str]]:
    return [{"name": name} for name in outputs]


# What is served.


def test_the_server_says_what_it_is(client: TestClient) -> None:
    """Name, version, and the extensions of the protocol by Triton's names."""
    document = client.get("/v2").json()
    assert document["name"] == "trimvit"
    assert document["version"].count(".") == 2
    assert {"binary_tensor_data", "classification", "model_configuration"} <= set(document["extensions"])


def test_readiness_follows_the_workers(client: TestClient, dispatch: FakeDispatch) -> None:
    """Live is the HTTP process; ready are a worker and its model."""
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    for path in ("/v2/models/toy/ready", "/v2/models/toy/versions/1/ready"):
        assert client.get(path).json() == {"name": "toy", "ready": True}
    dispatch.model = None
    assert client.get("/v2/health/live").status_code == 200
    response = client.get("/v2/health/ready")
    assert (response.status_code, response.json()) == (503, {"ready": False})
    for path in ("/v2/models/toy/ready", "/v2/models/toy", "/v2/models/toy/config"):
        response = client.get(path)
        assert "/readyz" in error_of(response, 503)  # type: ignore[arg-type]
        assert response.headers["Retry-After"] == "1"


def test_while_a_worker_is_replaced_the_model_is_still_described(
    client: TestClient, dispatch: FakeDispatch
) -> None:
    """From what is known, at once: nothing waits for a worker. Only readiness says that it is away."""
    dispatch.model, dispatch.was_ready = None, True
    for path in ("/v2/models/toy", "/v2/models/toy/config", "/v2/models/toy/versions/1", "/v1/models"):
        assert client.get(path).status_code == 200, path
    for path in ("/v2/models/toy/ready", "/v2/models/toy/versions/1/ready"):
        assert "/readyz" in error_of(client.get(path), 503)  # type: ignore[arg-type]
    assert "there is no model 'vit'" in error_of(client.get("/v2/models/vit/ready"), 404)  # type: ignore[arg-type]
    assert dispatch.waits_s == []


def test_a_model_is_ready_where_the_server_is() -> None:
    """One health decides for /readyz, /v2/health/ready and the model: also where images cannot be decoded."""

    dispatch = FakeDispatch(was_ready=True)
    with ThreadPoolExecutor(1) as threads:
        decoders = TroubledDecoders(threads)
        client = TestClient(create_app(Settings(), dispatch, decoders))
        for model, trouble in ((MODEL, None), (None, None), (MODEL, "none starts")):
            dispatch.model, decoders.trouble = model, trouble
            statuses = {
                client.get(path).status_code
                for path in ("/readyz", "/v2/health/ready", "/v2/models/toy/ready")
            }
            assert statuses == {200 if model and not trouble else 503}


@pytest.mark.parametrize("path", ["/v2/models/toy", "/v2/models/toy/versions/1"])
def test_metadata_names_every_tensor_with_its_shape(client: TestClient, path: str) -> None:
    """Inputs of which a request has one, and all outputs."""
    document = client.get(path).json()
    ModelMetadata.model_validate(document)
    assert (document["name"], document["versions"]) == ("toy", ["1"])
    assert {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in document["inputs"]} == {
        "image": ("BYTES", [-1, 1]),
        "pixels": ("UINT8", [-1, -1, -1, 3]),
    }
    assert {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in document["outputs"]} == {
        "label": ("BYTES", [-1, -1]),
        "score": ("FP32", [-1, -1]),
        "index": ("INT32", [-1, -1]),
        "logits": ("FP32", [-1, 11]),
        "kept_patches": ("BOOL", [-1, 2, 3, 5]),
        "keep_ratio": ("FP32", [-1, 1]),
        "compute": ("FP32", [-1, 1]),
        "embedding": ("FP32", [-1, 22]),
        "error": ("BYTES", [-1, 1]),
    }


def test_a_model_without_a_head_has_no_outputs_about_classes(
    client: TestClient, dispatch: FakeDispatch
) -> None:
    """Nor are they asked of it: it answers with all that it has, and what is about classes is refused."""
    dispatch.model = HEADLESS
    document = client.get("/v2/models/headless").json()
    names = ["kept_patches", "keep_ratio", "compute", "embedding"]
    assert [tensor["name"] for tensor in document["outputs"]] == [*names, "error"]
    outputs = outputs_of(asked(client, BASE64, model="headless"))
    assert list(outputs) == names
    assert outputs["embedding"]["data"] == list(FEATURES)
    assert (dispatch.questions[0].ask.top_k, dispatch.questions[0].ask.features) == (0, True)
    for name in ("label", "score", "index", "logits"):
        refused = asked(client, BASE64, model="headless", outputs=[{"name": name}])
        assert refused.status_code == 422
        assert "/v1/embed" in refused.json()["error"]
    assert len(dispatch.questions) == 1


@pytest.mark.parametrize("binary", [False, True])
def test_an_embedding_is_computed_only_where_it_is_named(
    client: TestClient, dispatch: FakeDispatch, binary: bool
) -> None:
    """Float32 numbers of each image, in the JSON or behind it, beside whatever else is named."""
    wanted = {"name": "embedding", "parameters": {"binary_data": binary}}
    response = asked(client, BASE64, BASE64, outputs=[wanted, {"name": "keep_ratio"}])
    assert response.status_code == 200, response.text
    if binary:
        length = int(response.headers[HEADER_LENGTH])
        document = json.loads(response.content[:length])
        values = np.frombuffer(response.content[length:], "<f4").tolist()
    else:
        document = response.json()
        values = document["outputs"][0]["data"]
    assert document["outputs"][0]["shape"] == [2, 22]
    assert values == list(FEATURES) * 2
    asked(client, BASE64)
    assert [question.ask.features for question in dispatch.questions] == [True, True, False]


@pytest.mark.parametrize("path", ["/v2/models/toy/config", "/v2/models/toy/versions/1/config"])
def test_the_configuration_is_the_metadata_in_tritons_words(
    make_client: Callable[..., TestClient], path: str
) -> None:
    """Triton's names of types, and shapes without the axis of images."""
    document = make_client(max_images_per_request=7).get(path).json()
    ModelConfig.model_validate(document)
    assert document["max_batch_size"] == 7
    tensors = {tensor["name"]: tensor for tensor in document["input"] + document["output"]}
    assert tensors["image"] == {"name": "image", "data_type": "TYPE_STRING", "dims": [1], "optional": True}
    assert tensors["kept_patches"]["dims"] == [2, 3, 5]


def test_a_name_may_have_slashes(client: TestClient, dispatch: FakeDispatch) -> None:
    """As the names of models from the hub have."""
    dispatch.model = msgspec.structs.replace(MODEL, name="hf-hub:owner/name")
    base = "/v2/models/hf-hub:owner/name"
    for path in (base, f"{base}/versions/1"):
        assert client.get(path).json()["name"] == "hf-hub:owner/name"
        assert client.get(f"{path}/ready").json()["ready"] is True
        assert client.get(f"{path}/config").json()["name"] == "hf-hub:owner/name"
        response = client.post(f"{path}/infer", json={"inputs": [image_input(BASE64)]})
        assert response.json()["model_name"] == "hf-hub:owner/name"


@pytest.mark.parametrize("tail", ["", "/ready", "/config", "/stats", "/infer"])
def test_other_models_and_versions_are_not_found(client: TestClient, tail: str) -> None:
    """404 says what there is."""
    method = "POST" if tail == "/infer" else "GET"
    wrong_model = client.request(method, f"/v2/models/vit{tail}", content=b"x" if method == "POST" else None)
    assert error_of(wrong_model, 404) == "there is no model 'vit'; allowed is 'toy'"  # type: ignore[arg-type]
    wrong_version = client.request(method, f"/v2/models/toy/versions/2{tail}")
    assert "no version '2' of the model 'toy'; allowed is '1'" in error_of(wrong_version, 404)  # type: ignore[arg-type]


def test_what_else_a_client_may_ask_of_triton_is_refused_in_the_protocols_shape(client: TestClient) -> None:
    """The repository and shared memory do not exist here, and clients can show that."""
    for method, path in (
        ("POST", "/v2/repository/index"),
        ("GET", "/v2/systemsharedmemory/status"),
    ):
        assert error_of(client.request(method, path), 404)  # type: ignore[arg-type]
    assert "supports POST" in error_of(client.get("/models/toy"), 405)  # type: ignore[arg-type]


@pytest.mark.parametrize(("only", "other"), [("image", "pixels"), ("pixels", "image")])
def test_a_server_may_take_one_input_alone(
    make_client: Callable[..., TestClient], only: str, other: str
) -> None:
    """Which is no longer optional, for clients that send all that there are."""
    client = make_client(open_inference_input=only)
    assert [each["name"] for each in client.get("/v2/models/toy").json()["inputs"]] == [only]
    (config,) = client.get("/v2/models/toy/config").json()["input"]
    assert (config["name"], config["optional"]) == (only, False)
    inputs = {
        "image": image_input(BASE64),
        "pixels": {"name": "pixels", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [0, 0, 0]},
    }
    assert client.post(INFER, json={"inputs": [inputs[only]]}).status_code == 200
    error = error_of(client.post(INFER, json={"inputs": [inputs[other]]}), 422)  # type: ignore[arg-type]
    assert f"only {only}" in error


# Answers.


def test_without_named_outputs_all_come_in_the_metadatas_order(client: TestClient) -> None:
    """But for the embedding, which is larger than all else, and for errors, of which there are none; and in
    its JSON unless asked otherwise."""
    response = asked(client, BASE64, BASE64, id="seven", parameters={"keep_ratio": 0.5, "top_k": 2})
    document = response.json()
    assert (document["id"], document["model_name"], document["model_version"]) == ("seven", "toy", "1")
    assert HEADER_LENGTH not in response.headers
    outputs = outputs_of(response)
    described = client.get("/v2/models/toy").json()["outputs"]
    assert [*outputs, "embedding", "error"] == [tensor["name"] for tensor in described]
    for tensor in described[:-2]:
        output = outputs[tensor["name"]]
        assert output["datatype"] == tensor["datatype"]
        assert len(output["shape"]) == len(tensor["shape"])
        assert all(at in (-1, length) for at, length in zip(tensor["shape"], output["shape"], strict=True))
        assert len(output["data"]) == np.prod(output["shape"])
    assert outputs["label"]["data"] == ["label 0", "label 1"] * 2
    assert outputs["score"]["data"] == [0.5, 0.25] * 2
    assert outputs["index"]["data"] == [0, 1] * 2
    assert outputs["logits"]["data"] == list(LOGITS) * 2
    assert outputs["keep_ratio"]["data"] == [0.5, 0.5]
    assert outputs["compute"]["data"] == pytest.approx([cost(Pruning(0.5))] * 2)
    grids = np.array(outputs["kept_patches"]["data"]).reshape(2, 2, 15)
    assert [np.flatnonzero(stage).tolist() for stage in grids[1]] == list(kept_patches(0.5))


def test_only_the_outputs_that_are_named_come_and_only_they_are_computed(
    client: TestClient, dispatch: FakeDispatch
) -> None:
    """In the order they are named; the worker is asked for logits and kept patches only where wanted."""
    assert list(outputs_of(asked(client, outputs=names("index", "label")))) == ["index", "label"]
    assert list(outputs_of(asked(client, outputs=names("logits")))) == ["logits"]
    assert list(outputs_of(asked(client, outputs=names("kept_patches")))) == ["kept_patches"]
    assert [(question.ask.logits, question.ask.kept_patches) for question in dispatch.questions] == [
        (False, False),
        (True, False),
        (False, True),
    ]


def test_an_answer_without_an_id_has_none(client: TestClient) -> None:
    """The id is the client's own."""
    assert "id" not in asked(client).json()


def test_outputs_come_as_binary_data_where_that_is_asked_for(client: TestClient) -> None:
    """Each output's own word goes before the request's; the header says where the JSON ends."""
    response = asked(
        client,
        parameters={"binary_data_output": True, "top_k": 2},
        outputs=[
            {"name": "label"},
            {"name": "score", "parameters": {"binary_data": False}},
            {"name": "index", "parameters": {"binary_data": True}},
        ],
    )
    assert response.headers["Content-Type"] == "application/octet-stream"
    length = int(response.headers[HEADER_LENGTH])
    label, score, index = json.loads(response.content[:length])["outputs"]
    assert label["parameters"] == {"binary_data_size": 22}
    assert score["data"] == [0.5, 0.25]
    assert index["parameters"] == {"binary_data_size": 8}
    assert response.content[length:] == write_elements([b"label 0", b"label 1"]) + struct.pack("<2i", 0, 1)


def test_classification_gives_the_best_as_value_index_label(
    client: TestClient, dispatch: FakeDispatch
) -> None:
    """Of scores and of logits; more classes than there are come to all; top_k does not limit it."""
    outputs = outputs_of(
        asked(
            client,
            parameters={"top_k": 1},
            outputs=[
                {"name": "score", "parameters": {"classification": 3}},
                {"name": "logits", "parameters": {"classification": 1000}},
                {"name": "index"},
            ],
        )
    )
    assert outputs["score"]["datatype"] == outputs["logits"]["datatype"] == "BYTES"
    assert outputs["score"]["shape"] == [1, 3]
    assert outputs["score"]["data"] == ["0.500000:0:label 0", "0.250000:1:label 1", "0.125000:2:label 2"]
    assert outputs["logits"]["shape"] == [1, 11]
    assert outputs["logits"]["data"][:2] == ["2.500000:0:label 0", "1.750000:1:label 1"]
    assert outputs["index"]["data"] == [0]
    assert dispatch.questions[0].ask.top_k == 3


def test_timings_are_in_server_timing(client: TestClient) -> None:
    """The phases of /v1/classify, for which the protocol's body has no place."""
    assert asked(client).headers["Server-Timing"].startswith("decode;dur=")


# Inputs.


def test_every_form_of_an_image_is_the_same_image(client: TestClient, dispatch: FakeDispatch) -> None:
    """base64 flat and nested, binary data, decoded pixels: all reach the dispatcher as from /v1."""
    pixels = np.asarray(picture())
    as_pixels = {"name": "pixels", "shape": [1, *pixels.shape], "datatype": "UINT8"}
    element = write_elements([IMAGE])

    def sized(tensor: dict[str, Any], data: bytes) -> tuple[bytes, dict[str, str]]:
        rest = {key: value for key, value in tensor.items() if key != "data"}
        return binary_body({"inputs": [{**rest, "parameters": {"binary_data_size": len(data)}}]}, data)

    requests: list[dict[str, Any]] = [
        {"json": {"inputs": [image_input(BASE64)]}},
        {"json": {"inputs": [image_input(BASE64, shape=[1, 1])]}},
        {"json": {"inputs": [image_input(BASE64, shape=[1, 1], data=[[BASE64]])]}},
        {"json": {"inputs": [{**as_pixels, "data": pixels.tolist()}]}},
        {"json": {"inputs": [{**as_pixels, "data": [pixels.tolist()]}]}},
        {"json": {"inputs": [{**as_pixels, "data": pixels.ravel().tolist()}]}},
    ]
    for tensor, data in (
        (image_input(BASE64), element),
        (image_input(BASE64, shape=[1, 1]), element),
        (as_pixels, pixels.tobytes()),
    ):
        body, headers = sized(tensor, data)
        requests.append({"content": body, "headers": headers})
    client.post("/v1/classify", content=IMAGE)
    for number, request in enumerate(requests):
        response = client.post(INFER, **request)
        if number == 3:  # the first axis is missing
            assert "nested" in error_of(response, 422)  # type: ignore[arg-type]
            continue
        assert response.status_code == 200, (number, response.text)
        assert np.array_equal(dispatch.questions[-1].pixels, dispatch.questions[0].pixels), number
    assert len(dispatch.questions) == len(requests)


class ByColour(FakeDispatch):
    """A dispatcher whose workers find the class of the strongest colour: 0, 1 or 2."""

    async def classify(self, question: Question, slot: Slot) -> Answer:
        answer = await super().classify(question, slot)
        colour = int(slot.copy()[0, 0].argmax())
        prediction = msgspec.structs.replace(answer.prediction, classes=[colour])
        return msgspec.structs.replace(answer, prediction=prediction)


def test_answers_are_in_the_images_order() -> None:
    """Of elements and of pictures, each has its own place."""
    colours = [(0, 250, 0), (0, 0, 250), (250, 0, 0)]
    pictures = [Image.new("RGB", (40, 24), colour) for colour in colours]
    pixels = np.stack([np.asarray(image) for image in pictures])
    of_pixels = {
        "name": "pixels",
        "shape": list(pixels.shape),
        "datatype": "UINT8",
        "parameters": {"binary_data_size": pixels.size},
    }
    wanted = {"parameters": {"top_k": 1}, "outputs": names("index")}
    body, headers = binary_body({"inputs": [of_pixels], **wanted}, pixels.tobytes())
    with TestClient(create_app(Settings(), ByColour())) as client:
        of_files = asked(client, *(base64.b64encode(encoded(image)).decode() for image in pictures), **wanted)
        of_arrays = client.post(INFER, content=body, headers=headers)
    for response in (of_files, of_arrays):
        index = outputs_of(response)["index"]  # type: ignore[arg-type]
        assert (index["shape"], index["data"]) == ([3, 1], [1, 2, 0])


def test_a_compressed_request_is_read(client: TestClient) -> None:
    """As Triton's client sends it on request_compression_algorithm; the header counts what was compressed."""
    element = write_elements([IMAGE])
    tensor = image_input(shape=[1], parameters={"binary_data_size": len(element)})
    del tensor["data"]
    body, headers = binary_body({"inputs": [tensor]}, element)
    compressed = {"content": gzip.compress(body), "headers": {**headers, "Content-Encoding": "gzip"}}
    assert client.post(INFER, **compressed).status_code == 200


# Parameters.


def test_parameters_are_the_options_of_v1(client: TestClient, dispatch: FakeDispatch) -> None:
    """By the same names, for all images of the request."""
    outputs_of(
        asked(
            client,
            BASE64,
            BASE64,
            parameters={
                "keep_ratio": 0.5,
                "criterion": "mad",
                "reducer": "fuse",
                "seed": 3,
                "top_k": 2,
                "deadline_ms": 4000,
            },
        )
    )
    for question in dispatch.questions:
        assert question.ask.pruning == Pruning(0.5, "mad", "fuse", seed=3)
        assert question.ask.top_k == 2
        assert 3.0 < question.deadline_s < 4.0
    outputs_of(asked(client, parameters={"cascade": True}))
    assert dispatch.questions[-1].ask.margin == 0.375


@pytest.mark.parametrize(
    ("timeout", "deadline_s"), [(2_000_000, 2.0), (1_999_001, 2.0), (0, 30.0), (600_000_000, 600.0)]
)
def test_timeout_is_a_deadline_in_microseconds(
    client: TestClient, dispatch: FakeDispatch, timeout: int, deadline_s: float
) -> None:
    """Triton's meaning; 0 is none of one's own. Parts of a millisecond count up."""
    outputs_of(asked(client, parameters={"timeout": timeout}))
    (question,) = dispatch.questions
    assert deadline_s - 0.9 < question.deadline_s < deadline_s


@pytest.mark.parametrize(
    ("priority", "word"),
    [(0, "normal"), (1, "high"), (2, "normal"), (3, "batch"), (2**31, "batch"), ("high", "high")],
)
def test_priority_is_tritons_number_or_a_word_of_v1(
    make_client: Callable[..., TestClient], dispatch: FakeDispatch, priority: int | str, word: str
) -> None:
    """1 goes before all others, the greater the later, 0 is the default."""
    outputs_of(asked(make_client(max_priority="high"), parameters={"priority": priority}))
    assert dispatch.questions[0].priority == word


def test_tritons_words_for_nothing_are_taken(client: TestClient) -> None:
    """What its clients may send where nothing is asked for."""
    outputs_of(
        asked(
            client,
            parameters={
                "priority": 0,
                "timeout": 0,
                "sequence_id": 0,
                "sequence_end": False,
                "triton_enable_empty_final_response": True,
            },
        )
    )


def test_members_that_are_null_are_as_if_not_there(client: TestClient, dispatch: FakeDispatch) -> None:
    """As programs write what is not set."""
    nothing = dict.fromkeys(
        ["keep_ratio", "top_k", "seed", "timeout", "priority", "binary_data_output", "content_type"]
    )
    plain = asked(client).json()
    for members in (
        {"id": None, "parameters": None, "outputs": None},
        {"inputs": [image_input(BASE64, parameters=None)]},
        {"inputs": [image_input(BASE64, parameters={"binary_data_size": None, "content_type": None})]},
        {"parameters": nothing},
    ):
        assert outputs_of(response := asked(client, **members))
        assert response.json() == plain
    named = {"name": "score", "parameters": {"binary_data": None, "classification": None}}
    assert outputs_of(asked(client, outputs=[named, {"name": "label", "parameters": None}]))


def test_the_codecs_of_mlservers_clients_are_taken(client: TestClient) -> None:
    """They name themselves in parameters of the request, its input and its outputs."""
    plain = asked(client, outputs=names("label")).json()
    for content_type in ("base64", "str"):
        said = {"content_type": content_type}
        response = asked(
            client,
            inputs=[image_input(BASE64, parameters=said)],
            outputs=[{"name": "label", "parameters": {"content_type": "str"}}],
            parameters=said,
        )
        assert response.json() == plain
    pixels = {"name": "pixels", "shape": [1, 2, 2, 3], "datatype": "UINT8", "data": [0] * 12}
    outputs_of(asked(client, inputs=[{**pixels, "parameters": {"content_type": "np"}}]))


def test_binary_data_without_json_is_refused_in_words(client: TestClient) -> None:
    """Triton takes it for models of one input."""
    response = client.post(INFER, content=IMAGE, headers={HEADER_LENGTH: "0"})
    error = error_of(response, 400)
    assert "without JSON" in error
    assert "POST /v1/classify" in error


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"keep_ratio": 0.5}, ["the request", "'keep_ratio'", '"parameters": {"keep_ratio": ...}']),
        ({"keepRatio": 0.5}, ["'keepRatio'", '"parameters": {"keep_ratio": ...}']),
        ({"timeout": 5}, ["'timeout'", "parameters"]),
        ({"params": {"keep_ratio": 0.5}}, ["'params'; did you mean parameters"]),
        ({"output": names("label")}, ["'output'; did you mean outputs"]),
        ({"inputs": [image_input(BASE64, keep_ratio=0.5)]}, ["inputs.0", "keep_ratio", "parameters"]),
        ({"inputs": [image_input(BASE64, binary_data_size=5)]}, ["inputs.0", "binary_data_size"]),
        ({"outputs": [{"name": "score", "classification": 2}]}, ["outputs.0", "classification"]),
        ({"outputs": [{"name": "score", "binary_data": True}]}, ["outputs.0", "binary_data"]),
    ],
)
def test_options_at_a_place_that_is_not_read_are_refused(
    client: TestClient, dispatch: FakeDispatch, members: dict[str, Any], words: list[str]
) -> None:
    """They would be ignored without a word otherwise."""
    error = error_of(asked(client, **members), 422)
    for word in words:
        assert word in error, error
    assert dispatch.questions == []


def test_options_in_the_query_are_refused(client: TestClient, dispatch: FakeDispatch) -> None:
    """It is not read here, unlike by other protocols; what is no option stays a client's own."""
    document = {"inputs": [image_input(BASE64)]}
    error = error_of(client.post(INFER + "?keep_ratio=0.5", json=document), 422)
    assert "query" in error
    assert '"parameters": {"keep_ratio": ...}' in error
    assert dispatch.questions == []
    outputs_of(client.post(INFER + "?trace=7", json=document))


def test_members_of_other_servers_are_ignored(client: TestClient) -> None:
    """Clients send more than the protocol has."""
    outputs_of(asked(client, model_name="toy", model_version="1", inputs=[image_input(BASE64, note=1)]))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (
            {"keep_ratio": 1.5},
            ["keep_ratio must be a number above 0 and at most 1, or 'auto', such as 0.5", "got 1.5"],
        ),
        ({"keep_ratio": 0.5, "compute": 0.5}, ["only one of", "keep_ratio and compute"]),
        ({"keep_ratio": [0.5]}, ["keep_ratio", "number"]),
        ({"timeout": -1}, ["timeout must be a whole number from 0 to 600000000", "got -1"]),
        ({"timeout": 1.5}, ["timeout", "whole number"]),
        ({"timeout": True}, ["timeout", "whole number"]),
        ({"timeout": 600_000_001}, ["timeout must be", "to 600000000"]),
        ({"timeout": 10**18}, ["timeout must be", "to 600000000"]),
        ({"timeout": 1000, "deadline_ms": 1}, ["either timeout or deadline_ms"]),
        (
            {"priority": -1},
            ["priority must be a whole number of at least 0", "or 'high', 'normal' or 'batch'", "got -1"],
        ),
        ({"priority": 1.5}, ["priority must be 'high', 'normal' or 'batch'"]),
        ({"priority": True}, ["priority must be 'high', 'normal' or 'batch'"]),
        ({"sequence_id": 7}, ["sequences are not supported", "sequence_id"]),
        ({"sequence_id": "a"}, ["sequences are not supported"]),
        ({"content_type": 5}, ["content_type", "got 5"]),
        ({"headers": "x"}, ["no parameter 'headers'"]),
        ({"triton_unknown": True}, ["no parameter 'triton_"]),
        ({"mask": "grid"}, ["'mask'", "kept_patches"]),
        ({"mask_stages": True}, ["'mask_stages'", "kept_patches"]),
        ({"binary_data_output": 1}, ["binary_data_output", "true or false"]),
        ({"cascade": True, "reducer": "fuse"}, ["cascade", "reducer"]),
    ],
)
def test_a_parameter_out_of_range_is_refused_in_words(
    client: TestClient, dispatch: FakeDispatch, parameters: dict[str, object], words: list[str]
) -> None:
    """422, with what was wrong and what is allowed."""
    error = error_of(asked(client, parameters=parameters), 422)
    for word in words:
        assert word in error, error
    assert dispatch.questions == []


# Refusals.

SIZED = {"binary_data_size": 4}


@pytest.mark.parametrize(
    ("members", "status", "words"),
    [
        ({"inputs": []}, 422, ["inputs", "inputs must be a list of objects, exactly 1; got []"]),
        (
            {"inputs": [image_input(BASE64)] * 2},
            422,
            ["inputs", "inputs must be a list of objects, exactly 1"],
        ),
        ({"inputs": "image"}, 422, ["inputs", "list"]),
        ({"inputs": [{"name": "image"}]}, 422, ["inputs.0.shape is missing", "inputs.0.datatype is missing"]),
        ({"inputs": [image_input(BASE64, name="photo")]}, 422, ["name", "'image' or 'pixels'", "photo"]),
        ({"inputs": [image_input(BASE64, datatype="UINT8")]}, 422, ["image", "UINT8", "allowed is BYTES"]),
        ({"inputs": [image_input(BASE64, datatype="FP32")]}, 422, ["datatype", "BYTES"]),
        ({"inputs": [image_input(BASE64, shape=[])]}, 422, ["shape"]),
        ({"inputs": [image_input(BASE64, shape=[-1])]}, 422, ["shape", "at least 1"]),
        ({"inputs": [image_input(BASE64, shape=[2])]}, 422, ["2 elements", "data has 1"]),
        ({"inputs": [image_input(BASE64, shape=[2**62])]}, 413, ["images", "at most 64"]),
        ({"inputs": [image_input(BASE64, shape=[10**4000])]}, 413, ["images", "at most 64"]),
        ({"inputs": [image_input(*["aGk="] * 65)]}, 413, ["65 images", "at most 64"]),
        ({"inputs": [image_input("%%%")]}, 400, ["image 0", "base64"]),
        ({"inputs": [image_input(BASE64, "aGk=")]}, 422, ["image 1: ", "not an image"]),
        ({"inputs": [image_input(BASE64, data=[5])]}, 422, ["base64"]),
        ({"inputs": [image_input(BASE64, data=None)]}, 422, ["data must be a list"]),
        ({"inputs": [image_input(BASE64, parameters=SIZED)]}, 422, ["4 bytes", "but 0 bytes"]),
        (
            {"inputs": [image_input(BASE64, parameters=IN_MEMORY, data=None)]},
            422,
            ["shared memory", "not enabled", "--shared-memory-bytes"],
        ),
        ({"inputs": [image_input(BASE64, parameters={"size": 3})]}, 422, ["'size'", "binary_data_size"]),
        (
            {"inputs": [image_input(BASE64, parameters={"content_type": "pd"})]},
            422,
            ["content_type must be 'base64', 'str' or 'np'", "got 'pd'"],
        ),
        (
            {"inputs": [{"name": "pixels", "shape": [1, 2, 2, 3], "datatype": "UINT8", "data": [0] * 11}]},
            422,
            ["12 elements", "data has 11"],
        ),
        (
            {
                "inputs": [
                    {"name": "pixels", "shape": [1, 70000, 1, 3], "datatype": "UINT8", "data": [0] * 210000}
                ]
            },
            413,
            ["70000", "65535"],
        ),
        (
            {"outputs": [{"name": "labels"}]},
            422,
            ["outputs.0.name must be 'label',", "got 'labels'; did you mean 'label'?"],
        ),
        ({"outputs": names("label", "label")}, 422, ["label", "more than once"]),
        ({"outputs": [{"name": "label", "parameters": {"classification": 2}}]}, 422, ["score and logits"]),
        ({"outputs": [{"name": "score", "parameters": {"classification": -1}}]}, 422, ["classification"]),
        ({"outputs": [{"name": "score", "parameters": IN_MEMORY}]}, 422, ["not enabled"]),
        ({"outputs": [{"name": "score", "parameters": {"top": 2}}]}, 422, ["'top'", "classification"]),
        ({"id": 5}, 422, ["id"]),
        ({"id": "x" * 1025}, 422, ["id", "1024"]),
        ({"parameters": []}, 422, ["parameters"]),
    ],
)
def test_a_request_that_is_wrong_is_refused_in_words(
    client: TestClient, dispatch: FakeDispatch, members: dict[str, Any], status: int, words: list[str]
) -> None:
    """With the right status, in the protocol's shape, and soon."""
    error = error_of(asked(client, **members), status)
    for word in words:
        assert word in error, error
    assert len(error) < 500


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b'"x"', b"\xff\xfe", b"[" * 100_000, b"null"])
def test_what_is_no_request_is_refused(client: TestClient, body: bytes) -> None:
    """Nothing, no JSON, JSON of another kind."""
    response = client.post(INFER, content=body)
    assert response.status_code in (400, 422)
    assert set(response.json()) == {"error"}


def test_limits_are_those_of_v1(make_client: Callable[..., TestClient]) -> None:
    """Images, bytes (before and after decompression) and pixels."""
    client = make_client(max_images_per_request=2, max_body_bytes=2000, max_image_pixels=100)
    assert "at most 2" in error_of(asked(client, *["aGk="] * 3), 413)
    assert "at most 2000" in error_of(client.post(INFER, content=bytes(2001)), 413)  # type: ignore[arg-type]
    assert "image 0" in error_of(asked(client), 413)
    pixels = {"name": "pixels", "shape": [1, 11, 10, 3], "datatype": "UINT8", "data": [0] * 330}
    assert "110 pixels; at most 100" in error_of(asked(client, inputs=[pixels]), 413)


@pytest.mark.parametrize(
    ("failure", "status"), [(QueueFull("full", retry_after_s=2), 429), (DeadlinePassed("late"), 504)]
)
def test_what_the_dispatcher_refuses_is_told_in_the_protocols_shape(
    client: TestClient, dispatch: FakeDispatch, failure: Exception, status: int
) -> None:
    """With the status and the headers of /v1, and which image it was."""
    black = base64.b64encode(encoded(picture(colour=(0, 0, 0)))).decode()
    dispatch.fails = failure
    dispatch.fails_for = lambda question: not question.pixels.any()  # images are decoded in any order
    response = asked(client, BASE64, black)
    assert error_of(response, status) == f"image 1: {failure}"
    assert response.headers.get("Retry-After") == ("2" if status == 429 else None)


def test_an_unforeseen_fault_has_the_protocols_shape(client: TestClient, dispatch: FakeDispatch) -> None:
    """A bug of ours is told to every client in the shape it knows."""
    dispatch.fails = RuntimeError("a bug")
    assert "request ID" in error_of(asked(client), 500)


APP = create_app(Settings(), FakeDispatch())
SOUND, SOUND_HEADERS = binary_body(
    {
        "id": "a",
        "parameters": {"keep_ratio": 0.5, "binary_data_output": True},
        "inputs": [
            {
                "name": "image",
                "shape": [1, 1],
                "datatype": "BYTES",
                "parameters": {"binary_data_size": len(IMAGE) + 4},
            }
        ],
        "outputs": [{"name": "score", "parameters": {"classification": 2}}],
    },
    write_elements([IMAGE]),
)


@given(
    st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.binary(max_size=3)), min_size=1, max_size=4),
    st.sampled_from([SOUND_HEADERS[HEADER_LENGTH], "0", "17", str(len(SOUND)), "", "x"]),
)
@settings(max_examples=examples(75), deadline=None, suppress_health_check=list(HealthCheck))
def test_no_damage_to_a_request_makes_a_fault_of_ours(changes: list[tuple[int, bytes]], length: str) -> None:
    """Whatever bytes of a sound request are replaced: an answer, or a refusal in words."""
    body = bytearray(SOUND)
    for place, piece in changes:
        body[place : place + len(piece)] = piece
    client = TestClient(APP, raise_server_exceptions=False)
    response = client.post(INFER, content=bytes(body), headers={HEADER_LENGTH: length})
    assert response.status_code in (200, 400, 413, 415, 422, 504), response.text
    if response.status_code != 200:
        assert response.json()["error"]


def test_a_sound_request_is_answered(client: TestClient) -> None:
    """The request that the test above damages."""
    assert client.post(INFER, content=SOUND, headers=SOUND_HEADERS).status_code == 200
