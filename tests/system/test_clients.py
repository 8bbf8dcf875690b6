"""Clients that others wrote, unmodified, against a real server: their answers are those of /v1/classify."""

import asyncio
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from google.protobuf import json_format
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from tritonclient.utils import InferenceServerException

from tests.system.photographs import SHIPPED
from tests.system.server import Server
from tests.system.tolerance import SCORE_TOLERANCE

MODEL = "trimvit-small-109"
PHOTOGRAPHS = [(SHIPPED / name).read_bytes() for name in ("china.jpg", "coffee.jpg", "chelsea.jpg")]


def v1(server: Server, image: bytes, **options: object) -> dict[str, Any]:
    """The result of /v1/classify for an image."""
    response = httpx.post(f"{server.url}/v1/classify", params=options, content=image, timeout=60)  # type: ignore[arg-type]
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()["results"][0]
    return result


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url.removeprefix("http://"), concurrency=4) as client:
        yield client


def image_input(images: list[bytes], columns: bool = True) -> triton.InferInput:
    """Encoded photographs as a tensor of shape [n, 1] or [n]."""
    array = np.array(images, object).reshape((len(images), 1) if columns else (len(images),))
    tensor = triton.InferInput("image", list(array.shape), "BYTES")
    tensor.set_data_from_numpy(array)
    return tensor


def assert_labels_as_v1(
    server: Server, image: bytes, labels: list[tuple[str, float]], **options: object
) -> None:
    """The labels are those of /v1 with their scores, and the first is best there too, or next to it."""
    scores = {entry["label"]: entry["score"] for entry in v1(server, image, top_k=1000, **options)["labels"]}
    assert labels
    for label, score in labels:
        assert score == pytest.approx(scores[label], abs=SCORE_TOLERANCE)
    assert [score for _, score in labels] == sorted((score for _, score in labels), reverse=True)
    assert labels[0][1] >= max(scores.values()) - SCORE_TOLERANCE


def assert_as_v1(server: Server, result: triton.InferResult, images: list[bytes], **options: object) -> None:
    """Labels, scores, kept patches and costs of every image are those of /v1."""
    names = httpx.get(f"{server.url}/v1/models").json()["models"][0]["labels"]
    assert result.as_numpy("label").shape == (len(images), 3)
    for place, image in enumerate(images):
        label, index, score = (result.as_numpy(name)[place] for name in ("label", "index", "score"))
        text = [one.decode() for one in label]
        assert text == [names[number] for number in index]
        assert_labels_as_v1(server, image, list(zip(text, score.tolist(), strict=True)), **options)
        wanted = v1(server, image, mask="grid", mask_stages="true", **options)
        assert result.as_numpy("keep_ratio")[place, 0] == pytest.approx(wanted["keep_ratio"])
        assert result.as_numpy("compute")[place, 0] == pytest.approx(wanted["compute"], abs=1e-5)
        kept = result.as_numpy("kept_patches")[place]
        assert kept.dtype == np.bool_
        assert kept.sum(axis=(1, 2)).tolist() == wanted["patches"]["per_stage"]
        assert (kept == np.array([stage["grid"] for stage in wanted["mask"]], bool)).mean() > 0.9


# docs/clients.md.

ROOT = Path(__file__).parents[2]
SNIPPETS = [
    snippet
    for snippet in re.findall(r"```python\n(.*?)```", (ROOT / "docs/clients.md").read_text(), re.DOTALL)
    if "trimvit_client" not in snippet  # our own client: see test_command_line.py
]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.splitlines()[0])
def test_a_snippet_of_the_documentation_works(server: Server, snippet: str) -> None:
    """Each Python snippet runs as it stands and finds the church."""
    assert "127.0.0.1:8000" in snippet or "127.0.0.1:8001" in snippet
    here = snippet.replace("127.0.0.1:8000", server.url.removeprefix("http://"))
    here = here.replace("127.0.0.1:8001", server.grpc)
    done = subprocess.run(
        [sys.executable, "-c", here], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert "church" in done.stdout


def test_the_documentation_shows_both_clients() -> None:
    """There are snippets to run."""
    assert any("tritonclient.http" in snippet for snippet in SNIPPETS)
    assert any("tritonclient.grpc" in snippet for snippet in SNIPPETS)
    assert any("huggingface_hub" in snippet for snippet in SNIPPETS)


# tritonclient.http


def test_tritonclient_reads_health_metadata_and_configuration(
    server: Server, client: triton.InferenceServerClient
) -> None:
    """All its calls that ask what is there, with and without a version."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready(MODEL, "2")
    assert not client.is_model_ready("another")
    assert client.get_server_metadata()["name"] == "trimvit"
    for version in ("", "1"):
        metadata = client.get_model_metadata(MODEL, version)
        assert [tensor["name"] for tensor in metadata["inputs"]] == ["image", "pixels"]
        assert client.get_model_config(MODEL, version)["max_batch_size"] == 64


def test_tritonclient_infers_from_encoded_files(server: Server, client: triton.InferenceServerClient) -> None:
    """As binary data, all outputs, for several photographs at once."""
    result = client.infer(
        MODEL, [image_input(PHOTOGRAPHS)], request_id="seven", parameters={"keep_ratio": 0.5, "top_k": 3}
    )
    assert result.get_response()["id"] == "seven"
    assert_as_v1(server, result, PHOTOGRAPHS, keep_ratio=0.5)
    logits = result.as_numpy("logits").astype(float)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    best = np.take_along_axis(shares, result.as_numpy("index").astype(int), axis=1)
    assert best == pytest.approx(result.as_numpy("score"), rel=1e-4)


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_infers_from_pixels(
    server: Server, client: triton.InferenceServerClient, binary: bool
) -> None:
    """An array of decoded photographs is the same as a lossless file of it."""
    small = [Image.open(io.BytesIO(photograph)).convert("RGB").resize((90, 70)) for photograph in PHOTOGRAPHS]
    files = []
    for image in small:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        files.append(buffer.getvalue())
    array = np.stack([np.asarray(image) for image in small])
    tensor = triton.InferInput("pixels", list(array.shape), "UINT8")
    tensor.set_data_from_numpy(array, binary_data=binary)
    result = client.infer(MODEL, [tensor], model_version="1", parameters={"top_k": 3, "reducer": "fuse"})
    assert_as_v1(server, result, files, reducer="fuse")


def test_tritonclient_chooses_outputs_and_their_form(
    server: Server, client: triton.InferenceServerClient
) -> None:
    """In JSON or binary, the numbers or the classification extension, and compressed on the way."""
    outputs = [
        triton.InferRequestedOutput("label", binary_data=False),
        triton.InferRequestedOutput("score", binary_data=True, class_count=2),
        triton.InferRequestedOutput("logits", binary_data=False, class_count=3),
    ]
    result = client.infer(
        MODEL,
        [image_input(PHOTOGRAPHS[:1], columns=False)],
        outputs=outputs,
        timeout=60_000_000,
        parameters={"top_k": 1},
        request_compression_algorithm="gzip",
        response_compression_algorithm="gzip",
    )
    best = v1(server, PHOTOGRAPHS[0])["labels"][0]
    assert result.as_numpy("label").tolist() == [[best["label"]]]
    score, index, label = result.as_numpy("score")[0, 0].decode().split(":", 2)
    assert (int(index), label) == (best["index"], best["label"])
    assert float(score) == pytest.approx(best["score"], abs=SCORE_TOLERANCE)
    assert result.as_numpy("logits").shape == (1, 3)
    assert result.as_numpy("index") is None


def test_tritonclient_infers_many_at_once(server: Server, client: triton.InferenceServerClient) -> None:
    """Its async_infer, on greenlets."""
    handles = [
        client.async_infer(MODEL, [image_input([photograph])], parameters={"top_k": 3, "keep_ratio": 0.7})
        for photograph in PHOTOGRAPHS
    ]
    for handle, photograph in zip(handles, PHOTOGRAPHS, strict=True):
        assert_as_v1(server, handle.get_result(timeout=60), [photograph], keep_ratio=0.7)


@pytest.mark.parametrize("over", ["http", "grpc"])
def test_tritonclient_reads_the_problems_of_single_images(
    client: triton.InferenceServerClient, grpc_client: triton_grpc.InferenceServerClient, over: str
) -> None:
    images, asked = [PHOTOGRAPHS[0], b"no photograph", PHOTOGRAPHS[1]], {"errors": "each", "top_k": 1}
    result = (
        client.infer(MODEL, [image_input(images)], parameters=asked)
        if over == "http"
        else grpc_client.infer(MODEL, [grpc_input(images)], parameters=asked)
    )
    first, problem, last = (text.decode() for text in result.as_numpy("error")[:, 0])
    assert (first, json.loads(problem)["status"], last) == ("", 422, "")
    assert result.as_numpy("index")[1, 0] == -1
    assert (result.as_numpy("score")[:, 0] > 0).tolist() == [True, False, True]


def test_tritonclient_infers_on_asyncio(server: Server) -> None:
    """Its client for asyncio: readiness, metadata, answers and errors."""

    async def ask() -> list[triton.InferResult]:
        async with triton_aio.InferenceServerClient(server.url.removeprefix("http://")) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready(MODEL)
            assert (await client.get_server_metadata())["name"] == "trimvit"
            assert (await client.get_model_metadata(MODEL))["name"] == MODEL
            assert (await client.get_model_config(MODEL))["name"] == MODEL
            with pytest.raises(InferenceServerException, match="top_k"):
                await client.infer(MODEL, [image_input(PHOTOGRAPHS)], parameters={"top_k": 0})
            asked = [
                client.infer(MODEL, [image_input([photograph])], parameters={"top_k": 3})
                for photograph in PHOTOGRAPHS
            ]
            return list(await asyncio.gather(*asked))

    for result, photograph in zip(asyncio.run(ask()), PHOTOGRAPHS, strict=True):
        assert_as_v1(server, result, [photograph])


def test_tritonclient_shows_what_was_wrong(client: triton.InferenceServerClient) -> None:
    """The server's words and status reach its user."""
    good = [image_input(PHOTOGRAPHS[:1])]
    for model, inputs, options, status, words in (
        (MODEL, good, {"parameters": {"keep_ratio": 1.5}}, "422", "got 1.5"),
        (MODEL, good, {"priority": 1}, "403", "--max-priority high"),
        (MODEL, good, {"sequence_id": 3, "sequence_start": True}, "422", "sequences are not supported"),
        (MODEL, good, {"timeout": 10**15}, "422", "timeout must be a whole number"),
        ("another", good, {}, "404", f"allowed is '{MODEL}'"),
        (MODEL, good, {"model_version": "7"}, "404", "no version '7'"),
        (MODEL, [image_input([PHOTOGRAPHS[0], b"no photograph"])], {}, "422", "image 1: the bytes are not"),
        (MODEL, [image_input([PHOTOGRAPHS[0]] * 65)], {}, "413", "at most 64"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, inputs, **options)  # type: ignore[arg-type]
        assert caught.value.status() == status
        assert words in caught.value.message()


def statistics(client: Any) -> dict[str, Any]:
    """Of the model, as either of Triton's clients reads them: uint64 comes as a string over gRPC."""
    for found in (client.get_inference_statistics(MODEL, "1"), client.get_inference_statistics()):
        if isinstance(client, triton_grpc.InferenceServerClient):
            found = json_format.MessageToDict(found, preserving_proto_field_name=True)
        (stats,) = found["model_stats"]
    assert (stats["name"], stats["version"]) == (MODEL, "1")
    counted: dict[str, Any] = stats
    return counted


def settled_statistics(client: triton.InferenceServerClient) -> dict[str, Any]:
    """Once they no longer change: metrics of batches are written up to a quarter of a second late."""
    found = statistics(client)
    time.sleep(0.5)
    while (later := statistics(client)) != found:
        found = later
        time.sleep(0.5)
    return found


def test_both_of_tritons_clients_read_the_same_statistics(
    server: Server, client: triton.InferenceServerClient, grpc_client: triton_grpc.InferenceServerClient
) -> None:
    """Of requests over HTTP and gRPC together, whichever front end answered them."""
    before = settled_statistics(client)
    for _ in range(5):
        client.infer(MODEL, [image_input(PHOTOGRAPHS[:2])])
        grpc_client.infer(MODEL, [grpc_input(PHOTOGRAPHS[:1])])
    after = settled_statistics(client)
    over_grpc = statistics(grpc_client)
    for name in ("inference_count", "execution_count", "last_inference"):
        assert int(over_grpc[name]) == after[name]
    assert after["inference_count"] - before["inference_count"] == 15
    assert 10 <= after["execution_count"] - before["execution_count"] <= 15
    for name, duration in after["inference_stats"].items():
        assert int(over_grpc["inference_stats"][name].get("count", 0)) == duration["count"]
        came = duration["count"] - before["inference_stats"][name]["count"]
        assert came == (0 if name == "fail" else 10)
        assert (duration["ns"] > before["inference_stats"][name]["ns"]) == (name != "fail")
    assert sum(each["compute_infer"]["count"] for each in after["batch_stats"]) == after["execution_count"]
    batched = sum(each["batch_size"] * each["compute_infer"]["count"] for each in after["batch_stats"])
    # Also those whose client did not wait for them.
    assert batched >= after["inference_count"]
    client.infer(MODEL, [image_input(PHOTOGRAPHS[:1])])
    assert statistics(client)["last_inference"] > after["last_inference"]


def test_what_triton_has_beside_is_told_by_what_stands_here(client: triton.InferenceServerClient) -> None:
    """Its clients show why there is no repository."""
    for call, words in (
        (client.get_model_repository_index, "--model-repository"),
        (lambda: client.load_model(MODEL), "--model-repository"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() == "404"
        assert words in caught.value.message()
    assert not client.is_model_ready("another")
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready(MODEL, "2")


# huggingface_hub


@pytest.mark.parametrize("path", ["", "/", f"/models/{MODEL}"])
def test_huggingface_hub_classifies(server: Server, path: str) -> None:
    """Bytes and a file's path; the labels and scores of /v1."""
    client = InferenceClient(model=server.url + path)
    for image in (PHOTOGRAPHS[0], SHIPPED / "china.jpg", str(SHIPPED / "china.jpg")):
        labels = client.image_classification(image)
        assert len(labels) == 5
        assert_labels_as_v1(server, PHOTOGRAPHS[0], [(label.label, label.score) for label in labels])


def test_huggingface_hubs_parameters_are_honoured(server: Server) -> None:
    """top_k, and function_to_apply on the logits; a keep ratio by the URL."""
    client = InferenceClient(model=server.url)
    photograph = PHOTOGRAPHS[1]
    by_function = {
        function: client.image_classification(photograph, function_to_apply=function, top_k=109)
        for function in ("softmax", "sigmoid", "none")
    }
    logits = {label.label: label.score for label in by_function["none"]}
    assert len(logits) == 109
    total = sum(np.exp(logit) for logit in logits.values())
    for label in by_function["softmax"]:
        assert label.score == pytest.approx(np.exp(logits[label.label]) / total, abs=SCORE_TOLERANCE)
    for label in by_function["sigmoid"]:
        assert label.score == pytest.approx(1 / (1 + np.exp(-logits[label.label])), abs=SCORE_TOLERANCE)
    pruned = InferenceClient(model=f"{server.url}/?keep_ratio=0.3&top_k=2").image_classification(photograph)
    assert len(pruned) == 2
    assert_labels_as_v1(server, photograph, [(label.label, label.score) for label in pruned], keep_ratio=0.3)


def test_huggingface_hub_classifies_on_asyncio(server: Server) -> None:
    """Its asynchronous client, several at once."""

    async def ask() -> list[Any]:
        async with AsyncInferenceClient(model=server.url) as client:
            return await asyncio.gather(
                *(client.image_classification(photograph, top_k=2) for photograph in PHOTOGRAPHS)
            )

    for labels, photograph in zip(asyncio.run(ask()), PHOTOGRAPHS, strict=True):
        assert len(labels) == 2
        assert_labels_as_v1(server, photograph, [(label.label, label.score) for label in labels])


def test_huggingface_hub_shows_what_was_wrong(server: Server) -> None:
    """The server's words and status reach its user."""
    with pytest.raises(HfHubHTTPError, match="not an image in a known format") as caught:
        InferenceClient(model=server.url).image_classification(b"no photograph")
    assert caught.value.response.status_code == 422
    with pytest.raises(HfHubHTTPError, match="top_k must be a whole number from 1 to 1000"):
        InferenceClient(model=server.url).image_classification(PHOTOGRAPHS[0], top_k=1001)
    with pytest.raises(HfHubHTTPError, match=f"allowed is '{MODEL}'"):
        InferenceClient(model=f"{server.url}/models/another").image_classification(PHOTOGRAPHS[0])


# tritonclient.grpc


@pytest.fixture
def grpc_client(server: Server) -> Iterator[triton_grpc.InferenceServerClient]:
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        yield client


def grpc_input(images: list[bytes]) -> triton_grpc.InferInput:
    tensor = triton_grpc.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(images, object).reshape(-1, 1))
    return tensor


def test_tritonclient_reads_health_metadata_and_configuration_over_grpc(
    grpc_client: triton_grpc.InferenceServerClient,
) -> None:
    """All its calls that ask what is there, with and without a version."""
    client = grpc_client
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata().name == "trimvit"
    for version in ("", "1"):
        assert client.is_model_ready(MODEL, version)
        metadata = client.get_model_metadata(MODEL, version)
        assert [tensor.name for tensor in metadata.inputs] == ["image", "pixels"]
        assert client.get_model_config(MODEL, version).config.max_batch_size == 64
    for name, version in ((MODEL, "2"), ("another", "")):
        with pytest.raises(InferenceServerException, match="there is no") as caught:
            client.is_model_ready(name, version)
        assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_tritonclient_infers_over_grpc(
    server: Server, grpc_client: triton_grpc.InferenceServerClient
) -> None:
    """All outputs, for several photographs at once, as encoded files; and as pixels."""
    parameters = {"keep_ratio": 0.5, "top_k": 3}
    result = grpc_client.infer(MODEL, [grpc_input(PHOTOGRAPHS)], request_id="seven", parameters=parameters)
    assert result.get_response().id == "seven"
    assert_as_v1(server, result, PHOTOGRAPHS, keep_ratio=0.5)
    pixels = np.asarray(Image.open(io.BytesIO(PHOTOGRAPHS[0])).convert("RGB"))[None]
    tensor = triton_grpc.InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    label = triton_grpc.InferRequestedOutput("label")
    best = triton_grpc.InferRequestedOutput("score", class_count=1)
    result = grpc_client.infer(MODEL, [tensor], outputs=[label, best])
    assert result.as_numpy("label")[0, 0].decode() == v1(server, PHOTOGRAPHS[0])["labels"][0]["label"]
    assert result.as_numpy("score")[0, 0].decode().count(":") == 2


def test_errors_over_grpc_say_what_is_wrong(grpc_client: triton_grpc.InferenceServerClient) -> None:
    late = ("DEADLINE_EXCEEDED", "UNAVAILABLE")  # it has passed, or it is seen in time that it will
    for image, parameters, statuses, words in (
        (b"no photograph", {}, ("INVALID_ARGUMENT",), "image 0"),
        (PHOTOGRAPHS[0], {"keep_ratio": 2.0}, ("INVALID_ARGUMENT",), "keep_ratio"),
        (PHOTOGRAPHS[0], {"deadline_ms": 1}, late, "deadline"),
    ):
        with pytest.raises(InferenceServerException, match=words) as caught:
            grpc_client.infer(MODEL, [grpc_input([image])], parameters=parameters)
        assert caught.value.status().removeprefix("StatusCode.") in statuses


def test_many_asyncio_calls_over_grpc_are_answered_each_with_its_own(server: Server) -> None:
    """32 at once, each photograph with its own keep ratio."""
    ratios = [0.3 + 0.02 * place for place in range(32)]

    async def all_at_once() -> list[triton_grpc.InferResult]:
        async with triton_grpc_aio.InferenceServerClient(server.grpc) as client:
            calls = [
                client.infer(MODEL, [grpc_input([PHOTOGRAPHS[place % 3]])], parameters={"keep_ratio": ratio})
                for place, ratio in enumerate(ratios)
            ]
            return await asyncio.gather(*calls)

    results = asyncio.run(all_at_once())
    assert [result.as_numpy("keep_ratio")[0, 0] for result in results] == pytest.approx(ratios)
    for place, result in enumerate(results[:3]):
        label = result.as_numpy("label")[0, 0].decode()
        assert_labels_as_v1(
            server, PHOTOGRAPHS[place], [(label, result.as_numpy("score")[0, 0])], keep_ratio=ratios[place]
        )


def test_calls_over_grpc_are_counted_with_the_requests(
    server: Server, grpc_client: triton_grpc.InferenceServerClient
) -> None:
    labels = {"route": "/v2/models/{model_name}/infer", "method": "POST", "status": "200"}
    before = server.metric("trimvit_requests_total", **labels)
    grpc_client.infer(MODEL, [grpc_input(PHOTOGRAPHS[:1])])
    assert server.metric("trimvit_requests_total", **labels) == before + 1
