"""Whether a server answers about a checkpoint as the classifier does offline."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from models.classifier import Classifier, ImageRequest
from models.load import load
from models.offered import REDUCERS_OF_ANY_MODEL
from models.schedule import Pruning
from tests.system.server import running_server
from tests.system.small_network import LABELS, PHOTOGRAPHS, alone
from tests.system.test_methods import ask, result_of


def assert_served_as_offline(folder: Path, checkpoint: Path, *flags: str) -> None:
    """Every photograph, at three ratios and with every reducer all at once, by its mask, cost and scores."""
    loaded = load(str(checkpoint))
    classifier = Classifier(loaded.model, loaded.input, "cpu", torch.float32)
    asked: list[dict[str, Any]] = [
        {"keep_ratio": ratio, "reducer": reducer}
        for ratio in (1.0, 0.7, 0.3)
        for reducer in REDUCERS_OF_ANY_MODEL
    ]
    work = [(image, options) for options in asked for image in PHOTOGRAPHS]
    with (
        running_server(folder, "--model", str(checkpoint), "--dtype", "float32", *flags) as server,
        ThreadPoolExecutor(len(work)) as pool,
    ):
        answers = list(pool.map(lambda each: ask(server, each[0], **each[1], mask="indices"), work))
    results = [result_of(answer) for answer in answers]
    for (image, options), result in zip(work, results, strict=True):
        expected = alone(classifier, image, ImageRequest(Pruning(**options), len(LABELS), kept_patches=True))
        assert expected.kept is not None
        assert result["mask"][0]["indices"] == expected.kept[-1].tolist()
        assert result["compute"] == pytest.approx(expected.compute, abs=1e-6)
        scores = [label["score"] for label in result["labels"]]
        assert scores == pytest.approx(expected.scores.tolist(), abs=1e-4)
