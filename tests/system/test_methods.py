"""Reducers, keep_mass and the cascade, the whole way in real processes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from models.classifier import Classifier, ImageRequest
from models.load import load
from models.schedule import Pruning, compute
from tests.system.server import Server, running_server
from tests.system.small_network import PHOTOGRAPHS, alone


def ask(server: Server, image: bytes, **options: object) -> httpx.Response:
    params = {name: str(value).lower() for name, value in options.items()}
    return httpx.post(f"{server.url}/v1/classify", params=params, content=image, timeout=60)


def result_of(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    (result,) = response.json()["results"]
    assert isinstance(result, dict)
    return result


def assert_refused(response: httpx.Response, *words: str) -> None:
    assert response.status_code == 422, response.text
    assert response.json()["type"] == "urn:trimvit:problem:invalid-value"
    for word in words:
        assert word in response.json()["detail"]


@pytest.fixture(scope="module")
def cascading(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of that network."""
    folder = tmp_path_factory.mktemp("cascading")
    with running_server(folder, "--model", str(calibrated), "--dtype", "float32") as running:
        yield running


def test_a_cascade_runs_again_what_it_is_unsure_of(cascading: Server, calibrated: Path) -> None:
    """cascade=true is answered as the classifier does offline: half of the photographs after one run, half
    after two; /v1/models and /metrics tell of it."""
    loaded = load(str(calibrated))
    assert loaded.cascade is not None
    classifier = Classifier(loaded.model, loaded.input, "cpu", torch.float32)
    with ThreadPoolExecutor(len(PHOTOGRAPHS)) as pool:
        results = list(pool.map(lambda image: result_of(ask(cascading, image, cascade=True)), PHOTOGRAPHS))
    for image, result in zip(PHOTOGRAPHS, results, strict=True):
        request = ImageRequest(loaded.cascade.first, 3, margin=loaded.cascade.margin)
        expected = alone(classifier, image, request)
        assert result["runs"] == expected.runs
        assert result["keep_ratio"] == expected.keep_ratio == (0.3 if expected.runs == 1 else 1.0)
        assert result["compute"] == pytest.approx(expected.compute, abs=1e-6)
        assert (result["criterion"], result["reducer"]) == ("mad", "fuse")
        assert [label["index"] for label in result["labels"]] == expected.classes.tolist()
        scores = [label["score"] for label in result["labels"]]
        assert scores == pytest.approx(expected.scores.tolist(), abs=1e-4)
    assert sorted(result["runs"] for result in results) == [1, 1, 2, 2]
    assert cascading.metric("trimvit_second_runs_total") == 2
    (model,) = httpx.get(f"{cascading.url}/v1/models").json()["models"]
    assert model["cascade"] == {
        "keep_ratio": 0.3,
        "criterion": "mad",
        "reducer": "fuse",
        "agreement": 0.9,
        "compute": 1.2,
    }


def test_lives_decide_in_a_batch_with_other_criteria(cascading: Server, calibrated: Path) -> None:
    """Every image is answered as it is alone and offline, at the cost that its ratio has under any criterion;
    a mass of lives gives each its own count."""
    loaded = load(str(calibrated))
    classifier = Classifier(loaded.model, loaded.input, "cpu", torch.float32)
    asked: list[dict[str, Any]] = [
        {"keep_ratio": ratio, "criterion": criterion}
        for ratio in (0.3, 0.7)
        for criterion in ("life", "variance", "random")
    ] + [{"keep_mass": 0.5, "criterion": "life"}, {"keep_ratio": 0.5, "criterion": "life", "reducer": "fuse"}]
    work = [(image, options) for options in asked for image in PHOTOGRAPHS]
    with ThreadPoolExecutor(len(work)) as pool:
        results = list(
            pool.map(lambda each: result_of(ask(cascading, each[0], **each[1], mask="indices")), work)
        )
    for (image, options), result in zip(work, results, strict=True):
        expected = alone(classifier, image, ImageRequest(Pruning(**options), 3, kept_patches=True))
        assert expected.kept is not None
        assert result["criterion"] == options["criterion"]
        assert result["mask"][0]["indices"] == expected.kept[-1].tolist()
        assert result["compute"] == pytest.approx(expected.compute, abs=1e-6)
        if "keep_ratio" in options and "reducer" not in options:
            share = compute(loaded.model.arch, loaded.model.stages, options["keep_ratio"])
            assert result["compute"] == pytest.approx(share, abs=1e-6)
    (model,) = httpx.get(f"{cascading.url}/v1/models").json()["models"]
    assert "life" in model["criteria"]


def test_without_a_cascade_it_is_refused_and_told_how_to_get_one(calibrated: Path, tmp_path: Path) -> None:
    """Served with other stages than it was fitted for, the network has no cascade; nor can its lives be
    predicted where the predictor does not read what comes to the first stage."""
    flags = ("--model", str(calibrated), "--stages", "3", "--default-reducer", "merge")
    with running_server(tmp_path, *flags) as server:
        assert_refused(ask(server, PHOTOGRAPHS[0], cascade=True), "no cascade", "trimvit calibrate")
        assert result_of(ask(server, PHOTOGRAPHS[0], keep_ratio=0.5))["reducer"] == "merge"
        (model,) = httpx.get(f"{server.url}/v1/models").json()["models"]
        assert model["cascade"] is None
        assert "life" not in model["criteria"]
        assert_refused(
            ask(server, PHOTOGRAPHS[0], criterion="life"), "the criterion life", "trimvit train --life"
        )
        assert "without its cascade" in server.log.read_text()
