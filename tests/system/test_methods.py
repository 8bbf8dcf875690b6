"""Reducers, keep_mass and the cascade, the whole way in real processes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from app.settings import BUNDLED_MODEL
from models.classifier import Classifier, ImageRequest
from models.device import choose_dtype
from models.schedule import Pruning
from models.zoo import load
from tests.system.server import Server, running_server
from tests.system.small_network import PHOTOGRAPHS, alone

# bfloat16 keeps 8 bits: a probability moves by up to about a hundredth with the company in the batch, and
# where an image's importance is summed up, a patch or two more or fewer hold the mass.
SCORE_TOLERANCE, PATCH_TOLERANCE = 0.03, 2


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


METHODS: list[tuple[dict[str, Any], Pruning]] = [
    ({"keep_ratio": 0.5}, Pruning(0.5)),
    ({"keep_ratio": 0.5, "reducer": "fuse"}, Pruning(0.5, reducer="fuse")),
    ({"keep_ratio": 0.5, "reducer": "merge"}, Pruning(0.5, reducer="merge")),
    ({"keep_mass": 0.8}, Pruning(keep_mass=0.8)),
    ({"keep_mass": 0.8, "reducer": "fuse", "criterion": "mad"}, Pruning(1.0, "mad", "fuse", keep_mass=0.8)),
]


def test_images_of_every_method_are_answered_together_as_each_alone(server: Server) -> None:
    """Photographs that ask for reducers and for keep_mass at once get labels, ratio, patches and compute as
    each gets them offline."""
    asked = [(image, *method) for image in PHOTOGRAPHS for method in METHODS]
    with ThreadPoolExecutor(len(asked)) as pool:
        results = list(pool.map(lambda one: result_of(ask(server, one[0], top_k=10, **one[1])), asked))
    loaded = load(BUNDLED_MODEL)
    classifier = Classifier(loaded.model, loaded.input, "cpu", choose_dtype("cpu"))
    ratios = set()
    for (image, options, pruning), result in zip(asked, results, strict=True):
        expected = alone(classifier, image, ImageRequest(pruning, top_k=10))
        assert result["reducer"] == pruning.reducer
        assert result["criterion"] == (None if pruning.reducer == "merge" else pruning.criterion)
        assert result["runs"] == 1
        tolerance = 0 if pruning.keep_mass is None else PATCH_TOLERANCE
        assert result["patches"]["per_stage"] == pytest.approx(list(expected.kept_counts), abs=tolerance)
        assert result["keep_ratio"] == pytest.approx(expected.keep_ratio, abs=tolerance / 256)
        assert result["compute"] == pytest.approx(expected.compute, abs=1e-6 + tolerance / 256)
        scores = dict(zip(expected.classes.tolist(), expected.scores.tolist(), strict=True))
        for label in result["labels"]:
            assert label["score"] == pytest.approx(scores[label["index"]], abs=SCORE_TOLERANCE), options
        if pruning.keep_mass is not None:
            ratios.add(result["keep_ratio"])
    assert len(ratios) > len(PHOTOGRAPHS), "each image has a ratio of its own"
    assert all(0 < ratio < 0.8 for ratio in ratios), "importance is not spread evenly"


def test_what_cannot_go_together_is_refused_in_words(server: Server) -> None:
    """422 names what was given and what is allowed."""
    image = PHOTOGRAPHS[0]
    assert_refused(ask(server, image, keep_mass=0.8, reducer="merge"), "merge", "drop and fuse")
    assert_refused(ask(server, image, keep_mass=0.8, keep_ratio=0.5), "only one of", "keep_mass")
    assert_refused(ask(server, image, keep_mass=1.5), "keep_mass", "less than or equal to 1")
    assert_refused(ask(server, image, reducer="pool"), "'drop', 'fuse' or 'merge'", "pool")
    assert_refused(ask(server, image, cascade=True, compute=0.5), "only one of", "cascade")
    assert_refused(ask(server, image, cascade=True, criterion="mad"), "calibrated", "leave out criterion")


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


def test_without_a_cascade_it_is_refused_and_told_how_to_get_one(calibrated: Path, tmp_path: Path) -> None:
    """Served with other stages than it was fitted for, the network has no cascade."""
    flags = ("--model", str(calibrated), "--stages", "2", "--default-reducer", "merge")
    with running_server(tmp_path, *flags) as server:
        assert_refused(ask(server, PHOTOGRAPHS[0], cascade=True), "no cascade", "trimvit calibrate")
        assert result_of(ask(server, PHOTOGRAPHS[0], keep_ratio=0.5))["reducer"] == "merge"
        (model,) = httpx.get(f"{server.url}/v1/models").json()["models"]
        assert model["cascade"] is None
        assert "without its cascade" in server.log.read_text()
