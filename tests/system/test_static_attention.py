"""A checkpoint whose first blocks have static attention, the whole way in real processes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from models.classifier import Classifier, ImageRequest
from models.load import load
from models.schedule import Pruning
from tests.system.server import running_server
from tests.system.small_network import PHOTOGRAPHS, alone, save_static_network
from tests.system.test_methods import ask, result_of


@pytest.mark.parametrize("exact", [False, True])
def test_it_is_served_as_it_answers_offline(tmp_path: Path, *, exact: bool) -> None:
    """In mixed batches, pruned per request: every image is answered as it is alone, at the cost that counts
    its static blocks."""
    path = tmp_path / "static.safetensors"
    save_static_network(path)
    loaded = load(str(path))
    assert loaded.model.arch.static_blocks == 2
    classifier = Classifier(loaded.model, loaded.input, "cpu", torch.float32)
    asked: list[dict[str, Any]] = [
        {"keep_ratio": ratio, "reducer": reducer}
        for ratio in (1.0, 0.7, 0.3)
        for reducer in ("drop", "fuse", "merge")
    ]
    work = [(image, options) for options in asked for image in PHOTOGRAPHS]
    flags = ["--exact"] if exact else []
    with (
        running_server(tmp_path, "--model", str(path), "--dtype", "float32", *flags) as server,
        ThreadPoolExecutor(len(work)) as pool,
    ):
        answers = list(pool.map(lambda each: ask(server, each[0], **each[1], mask="indices"), work))
    results = [result_of(answer) for answer in answers]
    for (image, options), result in zip(work, results, strict=True):
        expected = alone(classifier, image, ImageRequest(Pruning(**options), 3, kept_patches=True))
        assert expected.kept is not None
        assert result["mask"][0]["indices"] == expected.kept[-1].tolist()
        assert result["compute"] == pytest.approx(expected.compute, abs=1e-6)
        scores = [label["score"] for label in result["labels"]]
        assert scores == pytest.approx(expected.scores.tolist(), abs=1e-4)
