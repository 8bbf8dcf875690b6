"""Models are loaded and unloaded while a real server answers for others."""

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from models.classifier import Classifier, ImageRequest
from models.load import load
from models.schedule import Pruning
from tests.system.server import Server, free_port, running_server, wait_until
from tests.system.small_network import LABELS, OTHER_LABELS, PHOTOGRAPHS, alone, save_other_network

RATIOS = (1.0, 0.6, 0.4)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    save_other_network(path)
    return path


@pytest.fixture(scope="module")
def repository(calibrated: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two models are served, and two more may be loaded, of which one is not there."""
    folder = tmp_path_factory.mktemp("repository")
    flags = ("--model", f"first={calibrated}", "--model", f"second={other}", "--model-repository")
    loadable = ("--loadable", f"third={other}", "--loadable", f"missing={folder / 'none.safetensors'}")
    more = ("--dtype", "float32", "--http-workers", "2", "--max-queue-s", "600")
    with running_server(folder, *flags, *loadable, *more, "--grpc-port", str(free_port())) as running:
        yield running


def change(server: Server, name: str, verb: str, **headers: str) -> httpx.Response:
    url = f"{server.url}/v2/repository/models/{name}/{verb}"
    return httpx.post(url, json={}, headers=headers, timeout=120)


def states(server: Server) -> dict[str, str]:
    found = httpx.post(f"{server.url}/v2/repository/index", timeout=60).raise_for_status().json()
    return {model["name"]: model["state"] for model in found}


@dataclass
class Asked:
    """A request: its model and what it asks, when it began, its answer, and when that was there."""

    model: str
    photograph: int
    ratio: float
    began: float = 0.0
    ended: float = 0.0
    status: int = 0
    body: dict[str, Any] = field(default_factory=dict)


def asks(server: Server, model: str, until: threading.Event, found: list[Asked]) -> None:
    """One request after the other."""
    with httpx.Client(timeout=120) as client:
        number = 0
        while not until.is_set():
            one = Asked(model, number % len(PHOTOGRAPHS), RATIOS[number % len(RATIOS)], time.monotonic())
            options: dict[str, Any] = {"model": model, "keep_ratio": one.ratio, "top_k": 3}
            content = PHOTOGRAPHS[one.photograph]
            response = client.post(f"{server.url}/v1/classify", params=options, content=content)
            one.ended, one.status, one.body = time.monotonic(), response.status_code, response.json()
            found.append(one)
            number += 1


def test_a_model_is_unloaded_and_loaded_again_while_both_are_asked(
    repository: Server, calibrated: Path, other: Path
) -> None:
    """Every request that was sent before is answered, each by its own network; only what came while the model
    was away is refused, and in words. The other model goes on all the time."""
    over = threading.Event()
    found: list[Asked] = []
    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(asks, repository, name, over, found) for name in ("first", "second") * 4]
        changes = []
        try:
            for _ in range(2):
                wait_until(
                    lambda: sum(each.status == 200 for each in found) > 40 * (1 + len(changes)), "answers"
                )
                began = time.monotonic()
                assert change(repository, "second", "unload").status_code == 200
                unloaded = time.monotonic()
                assert states(repository)["second"] == "UNAVAILABLE"
                assert change(repository, "second", "load").status_code == 200
                changes.append((began, unloaded, time.monotonic()))
            wait_until(lambda: any(each.began > changes[-1][2] for each in found), "answers afterwards")
        finally:
            over.set()
        for client in clients:
            client.result()
    networks = {name: load(str(path)) for name, path in (("first", calibrated), ("second", other))}
    classifiers = {
        name: Classifier(loaded.model, loaded.input, "cpu", torch.float32)
        for name, loaded in networks.items()
    }
    refused = [each for each in found if each.status != 200]
    assert refused, "nothing was asked of the model while it was away"
    for each in refused:
        assert (each.model, each.status) == ("second", 404), each
        assert "not loaded" in each.body["detail"] or "unloaded" in each.body["detail"]
        assert any(began < each.ended and each.began < loaded for began, _, loaded in changes), each
    assert any(
        each.model == "first" and unloaded < each.began and each.ended < loaded
        for each in found
        for _, unloaded, loaded in changes
    ), "loading held up the other model"
    for each in found:
        if each.status == 200:
            labels = networks[each.model].labels
            request = ImageRequest(Pruning(each.ratio), top_k=len(labels))
            expected = alone(classifiers[each.model], PHOTOGRAPHS[each.photograph], request)
            scores = {
                labels[index]: score for index, score in zip(expected.classes, expected.scores, strict=True)
            }
            answered = {entry["label"]: entry["score"] for entry in each.body["results"][0]["labels"]}
            assert answered == pytest.approx(scores, abs=1e-3)


def test_what_cannot_be_loaded_is_refused_and_the_server_goes_on(repository: Server) -> None:
    """In the words of whoever reads the model, and the index keeps them."""
    response = change(repository, "missing", "load")
    assert response.status_code == 422, response.text
    assert "does not exist" in response.json()["error"]
    (entry,) = (
        each
        for each in httpx.post(f"{repository.url}/v2/repository/index").json()
        if each["name"] == "missing"
    )
    assert entry["state"] == "UNAVAILABLE"
    assert "does not exist" in entry["reason"]
    assert (response := change(repository, "/etc/passwd", "load")).status_code == 404, response.text
    assert (response := change(repository, "fourth", "load")).status_code == 404, response.text
    assert "first" in response.json()["error"]
    assert (response := change(repository, "first", "unload")).status_code == 409, response.text
    assert "default model" in response.json()["error"]
    answer = httpx.post(f"{repository.url}/v1/classify", content=PHOTOGRAPHS[0], timeout=60)
    assert answer.json()["model"] == "first"


def test_tritons_client_lists_loads_and_unloads(repository: Server) -> None:
    """Over HTTP, unmodified."""
    client = tritonclient.http.InferenceServerClient(repository.url.removeprefix("http://"))
    client.load_model("third")
    assert client.is_model_ready("third")
    assert {each["name"]: each["state"] for each in client.get_model_repository_index()}["third"] == "READY"
    client.unload_model("third", unload_dependents=True)
    assert not client.is_model_ready("third")
    assert states(repository)["third"] == "UNAVAILABLE"
    with pytest.raises(InferenceServerException, match="must not have 'config'"):
        client.load_model("third", config="{}")
    with pytest.raises(InferenceServerException, match=r"the file .* does not exist"):
        client.load_model("missing")


def test_tritons_grpc_client_lists_loads_and_unloads(repository: Server) -> None:
    """Unmodified, too."""
    client = tritonclient.grpc.InferenceServerClient(repository.grpc)
    client.load_model("third")
    index = client.get_model_repository_index(as_json=True)
    assert {each["name"]: each["state"] for each in index["models"]}["third"] == "READY"
    assert client.is_model_ready("third")
    client.unload_model("third")
    assert not client.is_model_ready("third")
    assert not client.is_model_ready("third", model_version="1")
    with pytest.raises(InferenceServerException, match="there is no model 'fourth'") as unknown:
        client.is_model_ready("fourth")
    assert "NOT_FOUND" in str(unknown.value.status())
    found = {each.name: each for each in client.get_model_repository_index().models}
    assert (found["third"].state, found["third"].version) == ("UNAVAILABLE", "1")
    for refused, words, status in (
        (lambda: client.load_model("missing"), "does not exist", "INVALID_ARGUMENT"),
        (lambda: client.load_model("fourth"), "there is no model 'fourth'", "NOT_FOUND"),
        (lambda: client.unload_model("first"), "default model", "FAILED_PRECONDITION"),
        (lambda: client.load_model("third", config="{}"), "must not have 'config'", "INVALID_ARGUMENT"),
        (lambda: client.load_model("third", files={"file:1/x": b"1"}), "must not have", "INVALID_ARGUMENT"),
    ):
        with pytest.raises(InferenceServerException, match=words) as caught:
            refused()
        assert status in str(caught.value.status())


def test_a_worker_that_dies_comes_back_with_what_is_served_now(repository: Server) -> None:
    """Not with what was served at the start."""
    assert change(repository, "third", "load").status_code == 200
    assert change(repository, "second", "unload").status_code == 200
    worker = repository.only_process("trimvit: worker")
    worker.send_signal(signal.SIGKILL)
    options = {"model": "third"}
    response = httpx.post(
        f"{repository.url}/v1/classify", params=options, content=PHOTOGRAPHS[0], timeout=120
    )
    assert response.status_code == 200, response.text
    assert {each["label"] for each in response.json()["results"][0]["labels"]} == set(OTHER_LABELS)
    assert repository.only_process("trimvit: worker").pid != worker.pid
    assert states(repository) == {
        "first": "READY",
        "third": "READY",
        "second": "UNAVAILABLE",
        "missing": "UNAVAILABLE",
    }
    dispatcher = repository.only_process("trimvit: dispatcher")
    dispatcher.send_signal(signal.SIGKILL)
    wait_until(lambda: repository.only_process("trimvit: dispatcher").pid != dispatcher.pid, "a dispatcher")
    wait_until(
        lambda: httpx.get(f"{repository.url}/v2/models/third/ready", timeout=60).status_code == 200,
        "the model",
    )
    assert set(LABELS) == set(httpx.get(f"{repository.url}/v1/models").json()["models"][0]["labels"])
    assert change(repository, "second", "load").status_code == 200
    assert change(repository, "third", "unload").status_code == 200
    assert [each["name"] for each in httpx.get(f"{repository.url}/v1/models").json()["models"]] == [
        "first",
        "second",
    ]


@pytest.mark.long  # the route's own tests refuse such a key, too
def test_only_a_key_that_is_marked_may_load(calibrated: Path, other: Path, tmp_path: Path) -> None:
    """Any key may list."""
    keys = tmp_path / "keys"
    keys.write_text("caller:caller-key-of-32-letters\noperator:operator-key-of-32-lett priority=high admin\n")
    flags = ("--model", f"first={calibrated}", "--loadable", f"second={other}", "--model-repository")
    caller, operator = "caller-key-of-32-letters", "operator-key-of-32-lett"
    with running_server(tmp_path, *flags, "--dtype", "float32", "--api-keys-file", str(keys)) as server:
        assert change(server, "second", "load").status_code == 401
        response = change(server, "second", "load", **{"X-API-Key": caller})
        assert response.status_code == 403
        assert "admin" in response.json()["error"]
        listed = httpx.post(f"{server.url}/v2/repository/index", headers={"X-API-Key": caller})
        assert [each["state"] for each in listed.json()] == ["READY", "UNAVAILABLE"]
        assert change(server, "second", "load", **{"X-API-Key": operator}).status_code == 200
