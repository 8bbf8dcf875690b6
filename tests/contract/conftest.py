"""Each deployment in turn, and what the network says of a photograph without any of them."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks.ray_cluster import READY_WITHIN_S
from models.bundled import BUNDLED_MODEL
from models.classifier import Classifier, ImageRequest, Prediction
from models.device import choose_dtype
from models.load import load
from tests.contract.deployments import DEPLOYMENTS, LONG, Deployment
from tests.system.small_network import alone as alone_on


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Everything in this folder starts processes; the first test of a deployment waits for all of them."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.system)
            item.add_marker(pytest.mark.timeout(READY_WITHIN_S + 300))


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in DEPLOYMENTS],
)
def deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """The service with the bundled model, deployed in one way after the other."""
    with DEPLOYMENTS[request.param](tmp_path_factory.mktemp("deployment")) as running:
        yield running


Alone = Callable[[bytes, ImageRequest], Prediction]


@pytest.fixture(scope="session")
def alone() -> Alone:
    """What the bundled model says of one photograph by itself, without a server."""
    loaded = load(BUNDLED_MODEL)
    classifier = Classifier(loaded.model, loaded.input, "cpu", choose_dtype("cpu"))

    @functools.cache  # every deployment is asked the same
    def says(image: bytes, request: ImageRequest) -> Prediction:
        return alone_on(classifier, image, request)

    return says
