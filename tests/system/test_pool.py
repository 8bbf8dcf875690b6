"""The reducer `pool`, the whole way in real processes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from models.classifier import Classifier, ImageRequest
from models.load import load
from models.schedule import Pruning, compute
from tests.system.server import running_server
from tests.system.small_network import PHOTOGRAPHS, alone, save_small_network
from tests.system.test_methods import ask, result_of


def test_it_is_served_as_it_answers_offline(tmp_path: Path) -> None:
    """In mixed batches, pruned per request: every image is answered as it is alone, at the cost of its
    reducer; no mask is made of tokens that are no patches."""
    path = tmp_path / "small.safetensors"
    save_small_network(path)
    loaded = load(str(path))
    classifier = Classifier(loaded.model, loaded.input, "cpu", torch.float32)
    asked: list[dict[str, Any]] = [
        {"keep_ratio": ratio, "reducer": reducer}
        for ratio in (1.0, 0.7, 0.3)
        for reducer in ("drop", "pool", "merge")
    ]
    work = [(image, options) for options in asked for image in PHOTOGRAPHS]
    with (
        running_server(tmp_path, "--model", str(path), "--dtype", "float32") as server,
        ThreadPoolExecutor(len(work)) as pool,
    ):
        results = [result_of(one) for one in pool.map(lambda each: ask(server, each[0], **each[1]), work)]
        refused = ask(server, PHOTOGRAPHS[0], keep_ratio=0.5, reducer="pool", mask="png")
        (model,) = httpx.get(f"{server.url}/v1/models").json()["models"]
    for (image, options), result in zip(work, results, strict=True):
        expected = alone(classifier, image, ImageRequest(Pruning(**options), 3))
        assert result["reducer"] == options["reducer"]
        assert (result["criterion"] is None) == (options["reducer"] != "drop")
        assert result["patches"]["per_stage"] == list(expected.kept_counts)
        share = compute(loaded.model.arch, loaded.model.stages, options["keep_ratio"], options["reducer"])
        assert result["compute"] == pytest.approx(share, abs=1e-6)
        scores = [label["score"] for label in result["labels"]]
        assert scores == pytest.approx(expected.scores.tolist(), abs=1e-4)
    assert refused.status_code == 422
    assert "the reducer pool keeps none" in refused.json()["detail"]
    assert model["reducers"] == ["drop", "fuse", "merge", "pool", "transform"]
