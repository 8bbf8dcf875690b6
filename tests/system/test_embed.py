"""Embeddings the whole way in real processes, of a network without a head."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from models.classifier import Classifier, ImageRequest
from models.load import load
from models.schedule import Pruning
from tests.system.server import Server, running_server
from tests.system.small_network import PHOTOGRAPHS, alone, save_headless_network

BYTES = {"Accept": "application/octet-stream"}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("headless") / "headless.safetensors"
    save_headless_network(path)
    return path


@pytest.fixture(scope="module")
def server(network: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("embedding")
    with running_server(folder, "--model", str(network), "--dtype", "float32") as running:
        yield running


def test_embeddings_in_mixed_batches_are_those_of_each_image_alone(server: Server, network: Path) -> None:
    """Many at once, each at its own ratio, half as JSON and half as bytes."""
    loaded = load(str(network), headless=True)
    classifier = Classifier(loaded.model, loaded.input, "cpu", torch.float32)
    asked = [(image, ratio / 10) for image in PHOTOGRAPHS for ratio in (2, 4, 6, 8, 10)]

    def answered(place: int) -> np.ndarray:
        image, ratio = asked[place]
        headers = BYTES if place % 2 else {}
        response = httpx.post(
            f"{server.url}/v1/embed",
            params={"keep_ratio": ratio, "normalize": "true"},
            content=image,
            headers=headers,
            timeout=60,
        )
        assert response.status_code == 200, response.text
        if headers:
            return np.frombuffer(response.content, "<f4")
        return np.array(response.json()["results"][0]["embedding"], np.float32)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(answered, range(len(asked))))
    for (image, ratio), embedding in zip(asked, found, strict=True):
        expected = alone(classifier, image, ImageRequest(Pruning(ratio), features=True)).features
        assert expected is not None
        np.testing.assert_allclose(embedding, expected / np.linalg.norm(expected), atol=1e-4)


def test_classes_are_refused_and_the_server_is_ready(server: Server) -> None:
    """It says what to do in place of it."""
    response = httpx.post(f"{server.url}/v1/classify", content=PHOTOGRAPHS[0], timeout=60)
    assert response.status_code == 422
    assert response.json()["type"] == "urn:trimvit:problem:no-classes"
    assert "/v1/embed" in response.json()["detail"]
    assert httpx.get(f"{server.url}/readyz", timeout=60).status_code == 200
    (described,) = httpx.get(f"{server.url}/v1/models", timeout=60).json()["models"]
    assert (described["labels"], described["embedding_size"]) == ([], 96)
