"""Two networks of different sizes and labels in one server: each request is answered by the one it names."""

from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from models.bundled import BUNDLED_MODEL
from models.classifier import Classifier, ImageRequest
from models.load import load
from models.schedule import Pruning, Reducer
from tests.system.server import Server
from tests.system.small_network import LABELS, PHOTOGRAPHS, alone

RATIOS = (1.0, 0.7, 0.5, 0.3)
REDUCERS: dict[str, Reducer] = {"photo": "fuse", "small": "merge"}  # their defaults


def ask(server: Server, photograph: bytes, **options: object) -> dict[str, Any]:
    response = httpx.post(f"{server.url}/v1/classify", params=options, content=photograph, timeout=120)  # type: ignore[arg-type]
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_under_mixed_load_each_model_gives_its_own_answers(both: Server, calibrated: Path) -> None:
    """All at once, with different ratios: what each network says of the photograph alone."""
    networks = {"photo": load(BUNDLED_MODEL), "small": load(str(calibrated))}
    classifiers = {
        name: Classifier(loaded.model, loaded.input, "cpu", torch.float32)
        for name, loaded in networks.items()
    }
    asked = [(name, photograph, ratio) for photograph in PHOTOGRAPHS for ratio in RATIOS for name in networks]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda each: ask(both, each[1], model=each[0], keep_ratio=each[2]), asked))
    for (name, photograph, ratio), answer in zip(asked, answers, strict=True):
        labels = networks[name].labels
        expected = alone(
            classifiers[name],
            photograph,
            ImageRequest(Pruning(ratio, reducer=REDUCERS[name]), top_k=len(labels)),
        )
        scores = {
            labels[index]: score for index, score in zip(expected.classes, expected.scores, strict=True)
        }
        assert answer["model"] == name
        for entry in answer["results"][0]["labels"]:
            assert entry["score"] == pytest.approx(scores[entry["label"]], abs=1e-3)


def test_the_first_model_is_the_default_and_paths_name_the_others(both: Server) -> None:
    assert ask(both, PHOTOGRAPHS[0])["model"] == "photo"
    listed = httpx.get(f"{both.url}/v1/models").json()["models"]
    assert [(model["name"], len(model["labels"])) for model in listed] == [("photo", 109), ("small", 3)]
    assert httpx.get(f"{both.url}/v2/models/small/ready").json() == {"name": "small", "ready": True}
    named = httpx.post(f"{both.url}/models/small", content=PHOTOGRAPHS[0]).json()
    assert {entry["label"] for entry in named} == set(LABELS)
    response = httpx.post(f"{both.url}/v1/classify?model=smal", content=PHOTOGRAPHS[0])
    assert response.status_code == 404
    assert "did you mean" in response.json()["detail"]


def test_each_model_has_defaults_of_its_own(both: Server) -> None:
    """What a request does not ask for follows its model; the log says so at the start."""
    for name, ratio, reducer in (("photo", 1.0, "fuse"), ("small", 0.5, "merge")):
        (result,) = ask(both, PHOTOGRAPHS[0], model=name)["results"]
        assert (result["keep_ratio"], result["reducer"]) == (ratio, reducer)
    assert "defaults of model small: keep_ratio 0.5, reducer merge" in both.log.read_text()


def test_many_images_of_one_model_do_not_keep_the_other_waiting(both: Server) -> None:
    """Of forty images for the large model, some are still waiting when one for the small model, which
    came last, is answered."""
    with ThreadPoolExecutor(40) as pool:
        many = [pool.submit(ask, both, PHOTOGRAPHS[0], model="photo") for _ in range(40)]
        wait(many, return_when=FIRST_COMPLETED)
        assert ask(both, PHOTOGRAPHS[0], model="small")["model"] == "small"
        waiting = sum(not each.done() for each in many)
        assert {each.result()["model"] for each in many} == {"photo"}
    assert waiting > 5
