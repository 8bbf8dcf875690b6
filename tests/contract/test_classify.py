"""What /v1/classify promises, however it is deployed."""

import base64
import io
import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models.bundled import BUNDLED_MODEL
from models.classifier import ImageRequest
from models.schedule import Pruning
from tests.contract.conftest import Alone
from tests.contract.deployments import Deployment, result_of
from tests.contract.hostile import hostile_requests
from tests.system.photographs import SHIPPED, photographs
from tests.system.server import wait_until
from tests.system.small_network import PHOTOGRAPHS
from tests.system.tolerance import SCORE_TOLERANCE

CHINA = (SHIPPED / "china.jpg").read_bytes()
# Where an image's importance is summed up in bfloat16, a patch or two more or fewer hold the mass.
PATCH_TOLERANCE, COSINE_TOLERANCE = 2, 0.01
CONCURRENT = 32
CLASSES = 109  # of the bundled model


def as_default(keep_ratio: float) -> Pruning:
    """How the bundled model prunes if a request says no more than its keep ratio."""
    return Pruning(keep_ratio, reducer="fuse")


def test_a_photograph_comes_back_with_labels_ratio_times_and_mask(deployment: Deployment) -> None:
    """A POSTed photograph is answered with labels, its keep ratio, its latency and its mask."""
    response = deployment.classify(CHINA, keep_ratio=0.5, mask="png", mask_stages=True)
    result = result_of(response)
    body = response.json()
    assert body["model"] == BUNDLED_MODEL
    assert result["labels"][0]["label"] == "church"
    assert result["keep_ratio"] == 0.5
    assert result["patches"] == {"total": 256, "kept": 32, "per_stage": [128, 64, 32], "grid": [16, 16]}
    assert 0.4 < result["compute"] < 0.6
    assert len(result["labels"]) == 5
    assert sum(label["score"] for label in result["labels"]) <= 1.001
    assert [stage["block"] for stage in result["mask"]] == [4, 7, 10]
    pictures = [Image.open(io.BytesIO(base64.b64decode(stage["png"]))) for stage in result["mask"]]
    brightness = [np.asarray(picture).mean() for picture in pictures]
    assert brightness == sorted(brightness, reverse=True), "each stage dims more"


def test_timings_are_told_twice_alike(deployment: Deployment) -> None:
    """Server-Timing says what timings_ms says, for every phase."""
    response = deployment.classify(CHINA, keep_ratio=0.3)
    timings = response.json()["timings_ms"]
    assert set(timings) == {"decode", "queue", "compute", "total"}
    told = dict(entry.split(";dur=") for entry in response.headers["Server-Timing"].split(", "))
    assert {phase: float(duration) for phase, duration in told.items()} == pytest.approx(timings)
    assert 0 < timings["compute"] <= timings["total"]


def test_the_total_time_of_an_infer_request_is_its_own(deployment: Deployment) -> None:
    """On /v2 as on /v1: no phase is longer than the total, and the client waited at least so long."""
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(CHINA).decode()]}
    response = httpx.post(
        f"{deployment.url}/v2/models/{BUNDLED_MODEL}/infer", json={"inputs": [image]}, timeout=120
    )
    assert response.status_code == 200, response.text
    entries = (entry.split(";dur=") for entry in response.headers["Server-Timing"].split(", "))
    told = {phase: float(duration) for phase, duration in entries}
    assert max(told.values()) == told["total"] <= response.elapsed.total_seconds() * 1000


@pytest.mark.parametrize("form", ["indices", "grid"])
def test_a_mask_shows_the_patches_that_are_counted(deployment: Deployment, form: str) -> None:
    """As numbers or as a grid, the mask has as many patches as ``patches`` says."""
    result = result_of(deployment.classify(CHINA, keep_ratio=0.4, mask=form, mask_stages=True))
    for stage, kept in zip(result["mask"], result["patches"]["per_stage"], strict=True):
        mask = stage[form]
        if form == "grid":
            assert np.shape(mask) == (16, 16)
            mask = np.flatnonzero(mask).tolist()
        assert len(set(mask)) == kept
        assert mask == sorted(mask)


@pytest.mark.parametrize("options", [{}, {"criterion": "mad"}, {"reducer": "drop"}])
def test_a_mask_shows_the_patches_that_the_network_keeps_alone(
    deployment: Deployment, alone: Alone, options: dict[str, Any]
) -> None:
    """After every stage, the patches of the mask are those that the photograph keeps without a server."""
    for image, ratio in zip(PHOTOGRAPHS, (0.7, 0.55, 0.4, 0.3), strict=True):
        asked = {"keep_ratio": ratio, "mask": "indices", "mask_stages": True, **options}
        result = result_of(deployment.classify(image, **asked))
        expected = alone(
            image, ImageRequest(Pruning(ratio, **{"reducer": "fuse", **options}), kept_patches=True)
        ).kept
        assert expected is not None
        for stage, kept in zip(result["mask"], expected, strict=True):
            assert len(stage["indices"]) == len(kept)
            # In bfloat16 the last of them may be a matter of how many threads compute.
            assert len(set(kept.tolist()) - set(stage["indices"])) <= PATCH_TOLERANCE


def test_several_images_of_a_form_have_their_own_ratios(deployment: Deployment, alone: Alone) -> None:
    """A form with several photographs is answered in its order, each at its own ratio."""
    ratios = [0.9, 0.6, 0.45, 0.3]
    response = httpx.post(
        f"{deployment.url}/v1/classify",
        files=[("image", (f"{index}.jpg", image)) for index, image in enumerate(PHOTOGRAPHS)],
        data={"options": json.dumps([{"keep_ratio": ratio} for ratio in ratios])},
        timeout=120,
    )
    assert response.status_code == 200, response.text
    for image, ratio, result in zip(PHOTOGRAPHS, ratios, response.json()["results"], strict=True):
        assert result["keep_ratio"] == ratio
        assert_as_alone(alone, image, as_default(ratio), result)


def test_several_images_of_a_json_document_have_their_own_ratios(
    deployment: Deployment, alone: Alone
) -> None:
    """JSON with base64 photographs likewise."""
    ratios = [0.35, 1.0, 0.5, 0.8]
    images = [
        {"image": base64.b64encode(image).decode(), "keep_ratio": ratio}
        for image, ratio in zip(PHOTOGRAPHS, ratios, strict=True)
    ]
    response = httpx.post(f"{deployment.url}/v1/classify", json={"images": images}, timeout=120)
    assert response.status_code == 200, response.text
    for image, ratio, result in zip(PHOTOGRAPHS, ratios, response.json()["results"], strict=True):
        assert result["keep_ratio"] == ratio
        assert_as_alone(alone, image, as_default(ratio), result)


def test_answers_under_concurrency_equal_each_image_alone(deployment: Deployment, alone: Alone) -> None:
    """Photographs by 16 clients, each at its own ratio, are answered as each alone, in mixed batches."""
    draw = random.Random(11)
    images = photographs(CONCURRENT)
    ratios = [round(draw.uniform(0.3, 1.0), 4) for _ in images]
    ragged_before = deployment.metric("trimvit_batches_total", form="ragged")
    with ThreadPoolExecutor(16) as pool:
        asked = zip(images, ratios, strict=True)
        responses = list(pool.map(lambda pair: deployment.classify(pair[0], keep_ratio=pair[1]), asked))
    assert [response.status_code for response in responses] == [200] * CONCURRENT
    assert deployment.metric("trimvit_batches_total", form="ragged") > ragged_before, "no mixed batch"
    for image, ratio, response in zip(images, ratios, responses, strict=True):
        result = result_of(response)
        expected = alone(image, ImageRequest(as_default(ratio), top_k=CLASSES))
        assert result["patches"]["per_stage"] == list(expected.kept_counts)
        assert_as_alone(alone, image, as_default(ratio), result)


METHODS: list[tuple[dict[str, Any], Pruning]] = [
    ({"keep_ratio": 0.5}, Pruning(0.5, reducer="fuse")),
    ({"keep_ratio": 0.5, "reducer": "drop"}, Pruning(0.5)),
    ({"keep_ratio": 0.5, "reducer": "merge"}, Pruning(0.5, reducer="merge")),
    ({"keep_ratio": 0.5, "reducer": "transform"}, Pruning(0.5, reducer="transform")),
    ({"keep_mass": 0.8}, Pruning(reducer="fuse", keep_mass=0.8)),
    ({"keep_mass": 0.8, "reducer": "drop", "criterion": "mad"}, Pruning(1.0, "mad", keep_mass=0.8)),
]


def test_embeddings_share_batches_with_labels_and_equal_each_image_alone(
    deployment: Deployment, alone: Alone
) -> None:
    """Half of the clients want a label and half an embedding of the same photographs, at many ratios."""
    draw = random.Random(17)
    asked = [(image, round(draw.uniform(0.3, 1.0), 2)) for image in PHOTOGRAPHS for _ in range(3)]

    def answered(place: int) -> dict[str, Any]:
        image, ratio = asked[place // 2]
        ask = deployment.embed if place % 2 else deployment.classify
        return result_of(ask(image, keep_ratio=ratio))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(answered, range(2 * len(asked))))
    for place, (image, ratio) in enumerate(asked):
        assert_as_alone(alone, image, as_default(ratio), found[2 * place])
        assert "embedding" not in found[2 * place]
        embedding = np.array(found[2 * place + 1]["embedding"])
        expected = alone(image, ImageRequest(as_default(ratio), features=True)).features
        assert expected is not None
        cosine = embedding @ expected / np.linalg.norm(embedding) / np.linalg.norm(expected)
        assert cosine > 1 - COSINE_TOLERANCE


def test_images_of_every_method_are_answered_together_as_each_alone(
    deployment: Deployment, alone: Alone
) -> None:
    """Photographs that ask for reducers and for keep_mass at once get labels, ratio, patches and compute as
    each gets them alone."""
    asked = [(image, *method) for image in PHOTOGRAPHS for method in METHODS]
    with ThreadPoolExecutor(len(asked)) as pool:
        results = list(
            pool.map(lambda one: result_of(deployment.classify(one[0], top_k=CLASSES, **one[1])), asked)
        )
    ratios = set()
    for (image, _, pruning), result in zip(asked, results, strict=True):
        expected = alone(image, ImageRequest(pruning, top_k=CLASSES))
        assert result["reducer"] == pruning.reducer
        assert result["criterion"] == (None if pruning.reducer == "merge" else pruning.criterion)
        assert result["runs"] == 1
        tolerance = 0 if pruning.keep_mass is None else PATCH_TOLERANCE
        assert result["patches"]["per_stage"] == pytest.approx(list(expected.kept_counts), abs=tolerance)
        assert result["keep_ratio"] == pytest.approx(expected.keep_ratio, abs=tolerance / 256)
        assert result["compute"] == pytest.approx(expected.compute, abs=1e-6 + tolerance / 256)
        assert_as_alone(alone, image, pruning, result)
        if pruning.keep_mass is not None:
            ratios.add(result["keep_ratio"])
    assert len(ratios) > len(PHOTOGRAPHS), "each image has a ratio of its own"
    assert all(0 < ratio < 0.8 for ratio in ratios), "importance is not spread evenly"


def assert_as_alone(alone: Alone, image: bytes, pruning: Pruning, result: dict[str, Any]) -> None:
    """The labels have the scores, and the best is the best, that the image gets alone."""
    expected = alone(image, ImageRequest(pruning, top_k=CLASSES))
    scores = dict(zip(expected.classes.tolist(), expected.scores.tolist(), strict=True))
    for label in result["labels"]:
        assert label["score"] == pytest.approx(scores[label["index"]], abs=SCORE_TOLERANCE), pruning
    assert scores[result["labels"][0]["index"]] >= max(scores.values()) - SCORE_TOLERANCE, "another label"


def test_hostile_bodies_are_refused_and_harm_nobody(deployment: Deployment) -> None:
    """A hundred broken or hostile requests each get the right 4xx, as problem+json or in the shape that the
    route's clients know; good ones beside them are answered."""
    hostile = hostile_requests()
    assert len(hostile) >= 100
    good = photographs(24)
    with ThreadPoolExecutor(8) as pool:
        beside = [pool.submit(deployment.classify, image, keep_ratio=0.5) for image in good]
        answers = list(pool.map(lambda case: (case, case.send(deployment.url)), hostile))
        assert [future.result().status_code for future in beside] == [200] * len(good)
    for case, response in answers:
        assert response.status_code == case.status, (
            f"{case.name}: {response.status_code} {response.text[:300]}"
        )
        assert response.headers.get_list("X-Request-ID"), case.name
        if case.path.startswith("/v2") or case.path == "/":
            assert response.json()["error"], case.name
            continue
        assert response.headers["Content-Type"] == "application/problem+json", case.name
        problem = response.json()
        assert problem["status"] == case.status, case.name
        assert problem["type"].startswith("urn:trimvit:problem:"), case.name
        assert problem["detail"], case.name
    assert httpx.get(f"{deployment.url}/readyz", timeout=60).status_code == 200


def test_what_cannot_go_together_is_refused_in_words(deployment: Deployment) -> None:
    """422 names what was given and what is allowed."""
    for words, options in [
        (("merge", "drop, fuse or transform"), {"keep_mass": 0.8, "reducer": "merge"}),
        (("only one of", "keep_mass"), {"keep_mass": 0.8, "keep_ratio": 0.5}),
        (("keep_mass", "above 0 and at most 1"), {"keep_mass": 1.5}),
        (("'drop', 'fuse', 'merge', 'pool' or 'transform'", "blend"), {"reducer": "blend"}),
        (("only one of", "cascade"), {"cascade": True, "compute": 0.5}),
        (("calibrated", "leave out criterion"), {"cascade": True, "criterion": "mad"}),
    ]:
        response = deployment.classify(CHINA, **options)
        assert response.status_code == 422, response.text
        assert response.json()["type"] == "urn:trimvit:problem:invalid-value"
        for word in words:
            assert word in response.json()["detail"]


def test_high_priority_is_for_those_whom_the_operator_allows_it(deployment: Deployment) -> None:
    """By default nobody's: it is refused in words, and the other priorities are answered."""
    response = deployment.classify(CHINA, priority="high")
    assert (response.status_code, response.json()["type"]) == (
        403,
        "urn:trimvit:problem:priority-not-allowed",
    )
    assert "--max-priority" in response.json()["detail"]
    for priority in ("normal", "batch"):
        result_of(deployment.classify(CHINA, priority=priority))


def test_of_several_images_the_one_at_fault_is_named(deployment: Deployment) -> None:
    """A form whose second file is no image is refused whole, and the problem says which it was."""
    files = [("image", ("a.jpg", CHINA)), ("image", ("b.jpg", b"no image")), ("image", ("c.jpg", CHINA))]
    response = httpx.post(f"{deployment.url}/v1/classify", files=files, timeout=120)
    assert response.status_code == 422
    assert response.json()["type"] == "urn:trimvit:problem:undecodable-image"
    assert response.json()["image"] == 1


def test_with_errors_each_every_image_has_its_own_answer(deployment: Deployment) -> None:
    """The others are answered, and the place of the one at fault has the problem that it alone would get."""
    files = [("image", ("a.jpg", CHINA)), ("image", ("b.jpg", b"no image")), ("image", ("c.jpg", CHINA))]
    alone = deployment.classify(b"no image")
    for path, member in (("/v1/classify", "labels"), ("/v1/embed", "embedding")):
        response = httpx.post(f"{deployment.url}{path}", files=files, data={"errors": "each"}, timeout=120)
        assert response.status_code == 207, response.text
        first, problem, last = response.json()["results"]
        assert member in first
        assert member in last
        assert problem == {**alone.json(), "image": 1}


def test_a_deadline_that_passes_is_told(deployment: Deployment) -> None:
    """What cannot be answered within deadline_ms is answered with 504. Only while a worker has something
    else to do is it known at once that it takes longer (503)."""

    def passed() -> bool:
        response = deployment.classify(CHINA, deadline_ms=1)
        assert response.headers["Content-Type"] == "application/problem+json"
        told = response.status_code, response.json()["type"]
        if told == (503, "urn:trimvit:problem:deadline-unmeetable"):
            return False
        assert told == (504, "urn:trimvit:problem:deadline-passed"), response.text
        return True

    wait_until(passed, "an idle worker to let the deadline pass")
