"""POST /v1/embed: what reaches the dispatcher, and what comes back."""

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from app.http.schemas import EmbedResponse
from models.schedule import compute
from tests.app.fakes import FEATURES, HEADLESS, MODEL, FakeDispatch, encoded

PATH = "/v1/embed"
BYTES = {"Accept": "application/octet-stream"}
ARCH, STAGES = MODEL.architecture, MODEL.method.stages
LENGTH = float(np.linalg.norm(FEATURES))

Embed = Callable[..., httpx.Response]


@pytest.fixture
def embed(client: TestClient) -> Embed:
    """POST /v1/embed with a sound raw image, unless the keyword arguments say otherwise."""

    def post(**request: Any) -> httpx.Response:
        if not request.keys() & {"content", "files", "json"}:
            request["content"] = encoded()
        return client.post(PATH, **request)  # type: ignore[return-value]

    return post


def results_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    EmbedResponse.model_validate_json(response.content)
    results: list[dict[str, Any]] = response.json()["results"]
    return results


def test_an_embedding_comes_with_ratio_patches_and_compute(embed: Embed, dispatch: FakeDispatch) -> None:
    """As /v1/classify tells them; without labels, which are not computed."""
    response = embed(params={"keep_ratio": 0.5})
    assert results_of(response) == [
        {
            "embedding": list(FEATURES),
            "keep_ratio": 0.5,
            "requested_keep_ratio": 0.5,
            "lowered": None,
            "criterion": "mean",
            "reducer": "drop",
            "patches": {"total": 15, "kept": 4, "per_stage": [8, 4], "grid": [3, 5]},
            "compute": round(compute(ARCH, STAGES, 0.5), 6),
            "runs": 1,
        }
    ]
    assert response.json()["model"] == "toy"
    assert response.json()["timings_ms"]["compute"] == 7.0
    assert "compute;dur=7.000" in response.headers["Server-Timing"]
    assert response.headers["Vary"] == "Accept"
    (question,) = dispatch.questions
    assert (question.ask.features, question.ask.top_k, question.ask.logits) == (True, 0, False)


def test_classify_asks_for_no_features(client: TestClient, dispatch: FakeDispatch) -> None:
    """Also behind a request for an embedding with the same options."""
    for path in (PATH, "/v1/classify", PATH):
        assert client.post(path, content=encoded()).status_code == 200
    assert [question.ask.features for question in dispatch.questions] == [True, False, True]
    assert [question.ask.top_k for question in dispatch.questions] == [0, 5, 0]


def test_labels_come_beside_it_where_they_are_asked_for(embed: Embed, dispatch: FakeDispatch) -> None:
    """Both are of one run."""
    (result,) = results_of(embed(params={"top_k": 2}))
    assert [label["label"] for label in result["labels"]] == ["label 0", "label 1"]
    assert result["embedding"] == list(FEATURES)
    assert len(dispatch.questions) == 1


def test_normalized_it_has_length_1(embed: Embed) -> None:
    """In each encoding, to the precision of float32."""
    (result,) = results_of(embed(params={"normalize": "true"}))
    np.testing.assert_allclose(result["embedding"], np.array(FEATURES) / LENGTH, rtol=1e-6)
    assert np.linalg.norm(result["embedding"]) == pytest.approx(1, abs=1e-6)
    (text,) = results_of(embed(params={"normalize": "1", "encoding": "base64"}))
    of_text = np.frombuffer(base64.b64decode(text["embedding"]), "<f4")
    assert of_text.tolist() == result["embedding"]
    assert (
        np.frombuffer(embed(params={"normalize": 1}, headers=BYTES).content, "<f4").tolist()
        == (result["embedding"])
    )


def test_every_image_has_options_of_its_own(embed: Embed, dispatch: FakeDispatch) -> None:
    """In JSON and in a form, as /v1/classify takes them."""
    image = base64.b64encode(encoded()).decode()
    images = [{"image": image, "keep_ratio": 0.2}, {"image": image, "encoding": "base64"}, {"image": image}]
    results = results_of(embed(json={"images": images, "keep_ratio": 0.6}))
    assert [result["keep_ratio"] for result in results] == [0.2, 0.6, 0.6]
    assert [type(result["embedding"]) for result in results] == [list, str, list]
    files = [("image", ("a.png", encoded(), "image/png"))] * 2
    options = json.dumps([{"normalize": True}, {"keep_ratio": 0.4}])
    one, two = results_of(embed(files=files, data={"options": options}))
    assert np.linalg.norm(one["embedding"]) == pytest.approx(1, abs=1e-6)
    assert (two["embedding"], two["keep_ratio"]) == (list(FEATURES), 0.4)
    assert len(dispatch.questions) == 5


def test_as_bytes_it_is_float32_image_after_image(embed: Embed) -> None:
    """What JSON says beside the embeddings is in headers."""
    files = [("image", ("a.png", encoded(), "image/png"))] * 2
    response = embed(files=files, params={"keep_ratio": 0.5}, headers=BYTES)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert np.frombuffer(response.content, "<f4").reshape(2, 22).tolist() == [list(FEATURES)] * 2
    assert response.headers["Embedding-Shape"] == "2, 22"
    assert response.headers["Embedding-Patches-Kept"] == "4, 4"
    share = f"{compute(ARCH, STAGES, 0.5):.6g}"
    assert response.headers["Embedding-Compute"] == f"{share}, {share}"
    assert "compute;dur=7.000" in response.headers["Server-Timing"]


def test_all_accept_headers_are_read(embed: Embed) -> None:
    """Several of them are one list (RFC 9110, section 5.2)."""
    response = embed(headers=[("Accept", "text/plain"), ("Accept", "application/octet-stream")])
    assert response.headers["Content-Type"] == "application/octet-stream"


@pytest.mark.parametrize("options", [{"top_k": 1}, {"mask": "grid"}, {"encoding": "base64"}])
def test_what_has_no_place_in_bytes_is_refused(
    embed: Embed, dispatch: FakeDispatch, options: dict[str, Any]
) -> None:
    """Rather than left out in silence."""
    response = embed(params=options, headers=BYTES)
    assert response.status_code == 422
    assert next(iter(options)) in response.json()["detail"]
    assert dispatch.questions == []


def test_many_embeddings_are_written_off_the_event_loop(embed: Embed, dispatch: FakeDispatch) -> None:
    """They come complete and in order."""
    image = base64.b64encode(encoded()).decode()
    images = [{"image": image, "keep_ratio": (place + 1) / 250} for place in range(60)] * 4
    response = embed(json={"images": images[:64]})
    results = results_of(response)
    assert [result["keep_ratio"] for result in results] == [each["keep_ratio"] for each in images[:64]]
    assert all(result["embedding"] == list(FEATURES) for result in results)
    assert len(dispatch.questions) == 64


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoding": "float16"}, "encoding must be 'float' or 'base64'"),
        ({"normalize": "perhaps"}, "normalize must be true or false"),
        ({"normalise": "true"}, "did you mean normalize?"),
        ({"top_k": -1}, "top_k must be a whole number from 0 to 1000"),
        ({"keep_ratio": 2}, "keep_ratio must be"),
    ],
    ids=str,
)
def test_a_wrong_option_is_told_with_what_is_allowed(
    embed: Embed, options: dict[str, Any], words: str
) -> None:
    """In the words of this route's own options."""
    response = embed(params=options)
    assert response.status_code == 422
    assert words in response.json()["detail"]
    assert response.json()["type"] == "urn:trimvit:problem:invalid-value"


def test_classify_takes_no_option_of_embeddings(client: TestClient) -> None:
    """A label cannot be normalized."""
    response = client.post("/v1/classify", content=encoded(), params={"normalize": "true"})
    assert response.status_code == 422
    assert "there is no option 'normalize'" in response.json()["detail"]


def test_a_cascade_gives_an_embedding_too(embed: Embed, dispatch: FakeDispatch) -> None:
    """Of the run that its labels would be of."""
    dispatch.unsure = True
    (result,) = results_of(embed(params={"cascade": "true"}))
    assert (result["runs"], result["keep_ratio"]) == (2, 1.0)
    assert dispatch.questions[0].ask.features


# A model without a head.


def test_without_a_head_there_are_embeddings_and_no_classes(embed: Embed, dispatch: FakeDispatch) -> None:
    """Labels are refused by a problem that says what to do."""
    dispatch.model = HEADLESS
    (result,) = results_of(embed(params={"keep_ratio": 0.5}))
    assert result["embedding"] == list(FEATURES)
    refused = embed(params={"top_k": 3})
    assert refused.status_code == 422
    assert refused.json()["type"] == "urn:trimvit:problem:no-classes"


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("/v1/classify", "detail"),
        ("/invocations", "detail"),
        ("/", "error"),
        ("/models/headless", "error"),
    ],
)
def test_without_a_head_every_route_of_classes_names_embed_and_head(
    client: TestClient, dispatch: FakeDispatch, path: str, where: str
) -> None:
    """As a problem of the request, in the form of the path, before anything is computed."""
    dispatch.model = HEADLESS
    response = client.post(path, content=encoded(), headers={"Content-Type": "image/png"})
    assert response.status_code == 422
    assert "headless has no classification head" in response.json()[where]
    assert "/v1/embed" in response.json()[where]
    assert "--head" in response.json()[where]
    assert dispatch.questions == []


def test_without_a_head_kserves_v1_is_told_so(client: TestClient, dispatch: FakeDispatch) -> None:
    """It has a form of its own."""
    dispatch.model = HEADLESS
    document = {"instances": [{"b64": base64.b64encode(encoded()).decode()}]}
    response = client.post("/v1/models/headless:predict", json=document)
    assert response.status_code == 422
    assert "/v1/embed" in response.json()["error"]


def test_a_model_without_a_head_is_described(client: TestClient, dispatch: FakeDispatch) -> None:
    """With no labels, and how many numbers an embedding has."""
    dispatch.model = HEADLESS
    (described,) = client.get("/v1/models").json()["models"]
    assert (described["labels"], described["embedding_size"]) == ([], 22)


def test_what_is_no_number_is_no_answer(embed: Embed, dispatch: FakeDispatch) -> None:
    """Features that overflowed would be null in JSON and hidden in bytes."""
    dispatch.overflows = True
    for headers in ({}, BYTES):
        response = embed(headers=headers)
        assert response.status_code == 500
        assert "not finite numbers" in response.json()["detail"]
