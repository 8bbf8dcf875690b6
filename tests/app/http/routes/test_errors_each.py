"""errors=each: an answer for each image, where some cannot be answered."""

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from app.errors import DeadlinePassed, OutOfMemory, Problem, QueueFull, WorkerLost
from app.http.routes.kserve_v1 import PredictEachResponse
from app.http.schemas import ClassifyEachResponse, EmbedEachResponse
from tests.app.fakes import MODEL, FakeDispatch, encoded
from tests.app.http.conftest import Classify
from tests.app.http.problem import assert_problem

BROKEN = encoded()[:60]  # ends in the middle
SOUND, BAD = base64.b64encode(encoded()).decode(), base64.b64encode(BROKEN).decode()


def test_a_broken_image_leaves_the_others_their_answers(classify: Classify) -> None:
    """Each place has what its image alone would get: the result, or the problem."""
    alone = classify().json()["results"][0]
    refused = classify(content=BROKEN)
    assert_problem(refused, 422, "undecodable-image", image=0)
    files = [("image", encoded()), ("image", BROKEN), ("image", encoded())]
    response = classify(files=files, data={"errors": "each"})
    assert response.status_code == 207
    assert response.headers["Content-Type"] == "application/json"
    assert response.json()["results"] == [alone, {**refused.json(), "image": 1}, alone]
    ClassifyEachResponse.model_validate_json(response.content, strict=True)
    assert set(response.json()) == {"model", "results", "timings_ms"}
    assert "Server-Timing" in response.headers


@pytest.mark.parametrize(
    "request_",
    [
        {"params": {"errors": "each"}, "files": [("a", encoded()), ("b", BROKEN)]},
        {"data": {"errors": "each"}, "files": [("a", encoded()), ("b", BROKEN)]},
        {"data": {"options": '{"errors": "each"}'}, "files": [("a", encoded()), ("b", BROKEN)]},
        {
            "files": [
                (name, (None, text))
                for name, text in (("a", f"data:image/png;base64,{SOUND}"), ("file", "?"), ("errors", "each"))
            ]
        },
        {"json": {"images": [{"image": SOUND}, {"image": BAD}], "errors": "each"}},
        {"json": {"images": [{"image": SOUND, "errors": "each"}, {"image": BAD, "errors": "each"}]}},
        {"params": {"errors": "each"}, "json": {"images": [{"image": SOUND}, {"image": BAD}]}},
    ],
    ids=["query", "form", "form's JSON", "base64 in a form", "JSON", "each image", "query and JSON"],
)
def test_it_is_asked_as_every_option_is(classify: Classify, request_: dict[str, Any]) -> None:
    """In the query, in a form, in JSON."""
    response = classify(**request_)
    assert response.status_code == 207, response.text
    good, bad = response.json()["results"]
    assert "labels" in good
    assert (bad["status"] in (400, 422), bad["image"]) == (True, 1)


@pytest.mark.parametrize(
    ("image", "slug"),
    [
        ({"image": "?!"}, "unreadable-request"),
        ({"image": 5}, "invalid-value"),
        ({}, "invalid-value"),
        ({"image": SOUND, "keep_ratio": 7}, "invalid-value"),
        ({"image": SOUND, "keep_ration": 0.7}, "invalid-value"),
        ({"image": SOUND, "min_keep_ratio": 0.9, "keep_ratio": 0.5}, "invalid-value"),
        ({"image": SOUND, "priority": "high"}, "priority-not-allowed"),
    ],
    ids=["no base64", "no text", "no image", "a wrong value", "no option", "against the model", "priority"],
)
def test_what_is_wrong_with_one_image_is_its_own(classify: Classify, image: Any, slug: str) -> None:
    """The problem is the one that the request would be refused with, at the place of the image."""
    images = [{"image": SOUND}, image]
    refused = classify(json={"images": images})
    response = classify(json={"images": images, "errors": "each"})
    assert response.status_code == 207, response.text
    good, bad = response.json()["results"]
    assert "labels" in good
    assert bad == refused.json()
    assert bad["type"] == f"urn:trimvit:problem:{slug}"


@pytest.mark.parametrize(
    "problem",
    [
        QueueFull("full", retry_after_s=7.0),
        DeadlinePassed("late"),
        WorkerLost("lost"),
        OutOfMemory("no room", retry_after_s=7.0),
    ],
    ids=lambda problem: problem.slug,
)
def test_what_goes_wrong_in_the_server_is_the_images_own_too(
    classify: Classify, dispatch: FakeDispatch, metric: Callable[..., float], problem: Problem
) -> None:
    """Status, Retry-After and metrics say it; nothing counts as a refused request."""
    dispatch.fails, dispatch.fails_for = problem, lambda question: question.ask.top_k == 2
    before = {name: metric("trimvit_images_total", outcome=name) for name in ("answered", problem.slug)}
    refusals = metric("trimvit_refusals_total", reason=problem.slug)
    images = [{"image": SOUND, "top_k": top_k} for top_k in (1, 2, 3)]
    response = classify(json={"images": images, "errors": "each"})
    assert response.status_code == 207
    results = response.json()["results"]
    assert [len(result.get("labels", ())) for result in results] == [1, 0, 3]
    assert results[1] == {**problem.to_dict(), "image": 1}
    assert response.headers.get("Retry-After") == (None if problem.retry_after_s is None else "7")
    assert metric("trimvit_images_total", outcome="answered") == before["answered"] + 2
    assert metric("trimvit_images_total", outcome=problem.slug) == before[problem.slug] + 1
    assert metric("trimvit_refusals_total", reason=problem.slug) == refusals


def test_without_a_problem_the_status_is_200(classify: Classify) -> None:
    """So the status alone says whether every image has its answer."""
    response = classify(json={"images": [{"image": SOUND}, {"image": SOUND}], "errors": "each"})
    assert response.status_code == 200
    assert all("labels" in result for result in response.json()["results"])


def test_where_no_image_has_an_answer_each_still_has_its_problem(classify: Classify) -> None:
    """207 all the same."""
    response = classify(content=BROKEN, params={"errors": "each"})
    assert response.status_code == 207
    document = ClassifyEachResponse.model_validate_json(response.content, strict=True)
    assert document.timings_ms.compute == 0
    (result,) = response.json()["results"]
    assert (result["status"], result["image"]) == (422, 0)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"images": [{"image": SOUND}], "errors": "every"}, "errors must be"),
        (
            {"images": [{"image": SOUND}, {"image": SOUND, "errors": "each"}]},
            "the same for all images of a request",
        ),
        ({"images": [{"image": SOUND, "model": "a"}, {"image": SOUND}], "errors": "each"}, "the same model"),
        ({"images": [{"image": BAD}, {"image": BAD, "errors": "each"}]}, "image"),
        ({"images": 5, "errors": "each"}, "must be a list"),
    ],
    ids=["no such value", "not the same", "several models", "first and each", "no images"],
)
def test_what_is_wrong_with_the_whole_request_refuses_it(
    classify: Classify, body: dict[str, Any], words: str
) -> None:
    """As ever."""
    response = classify(json=body)
    assert response.status_code == 422
    assert words in response.json()["detail"]


def test_embeddings_too(client: TestClient) -> None:
    """/v1/embed answers for each image in JSON; as bytes there is no place for a problem."""
    body: Any = {"images": [{"image": BAD}, {"image": SOUND}], "errors": "each"}
    response = client.post("/v1/embed", json=body)
    assert response.status_code == 207
    EmbedEachResponse.model_validate_json(response.content, strict=True)
    bad, good = response.json()["results"]
    assert (bad["status"], "embedding" in good) == (422, True)
    response = client.post("/v1/embed", json=body, headers={"Accept": "application/octet-stream"})
    assert response.status_code == 422
    assert response.json()["detail"].startswith("errors: ")


def test_where_a_request_has_one_image_it_is_refused(client: TestClient) -> None:
    """Hugging Face's."""
    body = {"inputs": SOUND, "parameters": {"errors": "each"}}
    response = client.post("/models/toy", json=body)
    assert response.status_code == 422, response.text
    assert "only one image" in response.json()["error"]


@pytest.mark.parametrize(
    "instance",
    [{"b64": BAD}, {"b64": "?!"}, {}, 5, {"b64": SOUND, "keep_ratio": 7}, {"b64": SOUND, "keep_ration": 0.7}],
    ids=["broken", "no base64", "no image", "no object", "a wrong value", "no option"],
)
def test_an_instance_of_kserve_has_its_own_prediction_or_problem(client: TestClient, instance: Any) -> None:
    """With 207; the problem is what the request would be refused with."""
    asked: dict[str, Any] = {"instances": [{"b64": SOUND}, instance, {"b64": SOUND}]}
    refused = client.post("/v1/models/toy:predict", json=asked)
    assert refused.status_code in (400, 422)
    response = client.post("/v1/models/toy:predict", json={**asked, "parameters": {"errors": "each"}})
    assert response.status_code == 207, response.text
    PredictEachResponse.model_validate_json(response.content, strict=True)
    first, bad, last = response.json()["predictions"]
    assert first == last
    assert "labels" in first
    assert (bad["status"], bad["image"]) == (refused.status_code, 1)
    assert bad["detail"] in refused.json()["error"]


def test_instances_must_agree_on_it(client: TestClient) -> None:
    asked = {"instances": [{"b64": SOUND, "errors": "each"}, {"b64": BAD}]}
    response = client.post("/v1/models/toy:predict", json=asked)
    assert response.status_code == 422
    assert "errors must be the same" in response.json()["error"]


def infer(client: TestClient, *images: str, **members: Any) -> dict[str, Any]:
    """The outputs of /v2 by their names, as rows of one image each."""
    tensor = {"name": "image", "shape": [len(images)], "datatype": "BYTES", "data": list(images)}
    body = {"inputs": [tensor], "parameters": {"errors": "each", "top_k": 2}, **members}
    response = client.post("/v2/models/toy/infer", json=body)
    assert response.status_code == 200, response.text
    return {
        output["name"]: np.array(output["data"]).reshape(output["shape"]).tolist()
        for output in response.json()["outputs"]
    }


@pytest.mark.parametrize("bad", [BAD, "?!"], ids=["broken", "no base64"])
def test_on_v2_problems_are_an_output(client: TestClient, metric: Callable[..., float], bad: str) -> None:
    """Which is empty for the images that are answered; the status is 200, as the protocol's clients know no
    other. The other outputs of an image that has a problem are 0 or empty."""
    names = [tensor["name"] for tensor in client.get("/v2/models/toy").json()["outputs"]]
    outputs = [{"name": name} for name in names]
    (alone,) = zip(*infer(client, SOUND, outputs=outputs).values(), strict=True)
    answered = metric("trimvit_images_total", outcome="answered")
    found = infer(client, bad, SOUND, bad, SOUND, outputs=outputs)
    assert list(found) == names
    rows = list(zip(*found.values(), strict=True))
    assert rows[1] == rows[3] == alone
    assert metric("trimvit_images_total", outcome="answered") == answered + 2
    for place in (0, 2):
        row = dict(zip(names, rows[place], strict=True))
        problem = json.loads(row.pop("error")[0])
        assert (problem["status"] in (400, 422), problem["image"]) == (True, place)
        assert (row.pop("label"), row.pop("index")) == (["", ""], [-1, -1])
        assert not any(np.any(values) for values in row.values())
    assert alone[names.index("error")] == [""]


def test_on_v2_all_images_may_have_problems(client: TestClient, dispatch: FakeDispatch) -> None:
    """Also as best classes, and what may be tried again says when; without errors=each, there are none."""
    outputs = [{"name": "score", "parameters": {"classification": 3}}, {"name": "logits"}]
    found = infer(client, BAD, BAD, outputs=outputs)
    assert found == {"score": [["", "", ""]] * 2, "logits": [[0] * len(MODEL.labels)] * 2}
    dispatch.fails = QueueFull("full", retry_after_s=7.0)
    tensor = {"name": "pixels", "shape": [2, 1, 1, 3], "datatype": "UINT8", "data": [0] * 6}
    body: dict[str, Any] = {"inputs": [tensor], "parameters": {"errors": "each"}}
    response = client.post("/v2/models/toy/infer", json=body)
    assert (response.status_code, response.headers["Retry-After"]) == (200, "7")
    assert [output["name"] for output in response.json()["outputs"]][-1] == "error"
    dispatch.fails = None
    assert infer(client, SOUND, outputs=[{"name": "error"}], parameters={}) == {"error": [[""]]}
