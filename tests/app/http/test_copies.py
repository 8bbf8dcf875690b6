"""The way of an image's pixels: from a decoder's memory into a slot, and from there to the device.

A real application, decoder process, dispatcher and worker; only the network is a stand-in.
"""

import asyncio
import json
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import torch

from app.decoding import decoder_process
from app.decoding.decoder import STARTED
from app.decoding.images import ImageLimits, decode
from app.decoding.pool import Decoders, DecodingProcesses, InExecutor, memory_for
from app.dispatch import slot as held_slots
from app.dispatch.policy.batches import QueueLimits
from app.main import create_app
from app.messages import slots
from app.messages.pixels import copy_pixels
from app.settings.settings import Settings
from app.worker import torch_backend
from app.worker.backend import Loaded
from app.worker.streams import OnAll
from app.worker.torch_backend import TorchBackend
from models.classifier import ImageRequest, Prediction
from tests.app.dispatch.rig import (
    ONE_AT_A_TIME,
    ONE_STREAM,
    FakeBackend,
    House,
    begun,
    measured,
    ready_client,
    running_dispatcher,
    running_worker,
    served,
    until,
)
from tests.app.fakes import LOGITS, MODEL, applied_ratio, encoded, kept_patches, picture
from tests.app.http.test_off_the_loop import asking

pytestmark = pytest.mark.anyio

# An image has 1.5 MB, far more than all else that a request takes.
LARGE = msgspec.structs.replace(MODEL, input=replace(MODEL.input, size=(700, 721)))
SIZE = (700, 721, 3)
PNG = encoded(picture(9, 7))
LIMITS = ImageLimits(10**6)


@dataclass
class Network:
    """Remembers what it was given to compute, while it ``remembers``, and answers by rule."""

    spec: Any
    remembers: bool = True
    seen: list[np.ndarray] = field(default_factory=list)

    def classify(self, pixels: torch.Tensor, requests: Sequence[ImageRequest]) -> list[Prediction]:
        if self.remembers:
            self.seen += list(pixels.numpy().copy())
        return [self._prediction(request) for request in requests]

    @staticmethod
    def _prediction(request: ImageRequest) -> Prediction:
        kept = kept_patches(applied_ratio(request.pruning))
        return Prediction(
            classes=np.arange(request.top_k),
            scores=np.float32(0.5) ** np.arange(1, request.top_k + 1),
            kept_counts=tuple(map(len, kept)),
            kept=tuple(np.array(stage) for stage in kept) if request.kept_patches else None,
            keep_ratio=applied_ratio(request.pruning),
            compute=0.5,
            runs=1,
            logits=np.array(LOGITS, np.float32) if request.logits else None,
        )


class Backend(TorchBackend):
    """Takes pixels as the real one does, and gives them to the stand-in of a network."""

    may_load, may_answer = (
        threading.Event(),
        threading.Event(),
    )  # never asked for; the rig sets them at the end

    def load(self, on_all: OnAll) -> Loaded:
        self._classifier = Network(LARGE.input)  # type: ignore[assignment]
        return Loaded(LARGE, self.limits, measured(self.limits))


@asynccontextmanager
async def application(
    house: House, decoders: Decoders, **settings: object
) -> AsyncIterator[httpx.AsyncClient]:
    """The application, and a client of it, for which a worker is ready."""
    async with ready_client(house) as client:
        app = create_app(Settings(**settings), client, decoders)  # type: ignore[arg-type]
        async with asking(app) as http:
            yield http
        decoders.close()


def as_tensor(pixels: np.ndarray) -> dict[str, Any]:
    """An infer request with these pixels behind its JSON."""
    given = {"name": "pixels", "datatype": "UINT8", "shape": [1, *pixels.shape]}
    head = json.dumps({"inputs": [{**given, "parameters": {"binary_data_size": pixels.nbytes}}]}).encode()
    return {
        "content": head + pixels.tobytes(),
        "headers": {"Inference-Header-Content-Length": str(len(head))},
    }


async def test_pixels_are_copied_twice_between_decoder_and_device(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoded images and ready pixels; once more only where a picture is to be drawn over them. The front end
    takes no memory for them but the slot."""
    copied: list[str] = []

    def counting(module: Any) -> None:
        def copy(target: np.ndarray, pixels: np.ndarray) -> None:
            copied.append(module.__name__.rpartition(".")[2])
            copy_pixels(target, pixels)

        monkeypatch.setattr(module, "copy_pixels", copy)

    for module in (slots, held_slots, torch_backend):
        counting(module)
    backend = Backend(Settings(), Settings().models[0], "cpu:0", "cpu", torch.float32, ONE_STREAM, threads=1)
    expected = decode(PNG, LARGE.input, LIMITS).pixels
    ready = np.random.default_rng(1).integers(0, 256, SIZE, np.uint8)
    requests: list[tuple[str, dict[str, Any], np.ndarray, list[str]]] = [
        ("/v1/classify", {"content": PNG}, expected, ["slots", "torch_backend"]),
        ("/v1/classify?mask=grid", {"content": PNG}, expected, ["slots", "torch_backend"]),
        ("/v1/classify?mask=png", {"content": PNG}, expected, ["slots", "torch_backend", "slot"]),
        ("/v2/models/toy/infer", as_tensor(ready), ready, ["slots", "torch_backend"]),
    ]
    with running_dispatcher(house), running_worker(house, backend):
        decoders = DecodingProcesses(1, 60, memory_for(10**6))
        async with application(house, decoders) as http:
            for path, request, pixels, copies in requests:
                copied.clear()
                response = await http.post(path, **request)
                assert response.status_code == 200, response.text
                assert copied == copies, path
                network = backend._classifier
                assert isinstance(network, Network)
                assert np.array_equal(network.seen.pop(), pixels)
                assert house.taken == 0
            network.remembers = False
            tracemalloc.start()
            try:
                assert (await http.post("/v1/classify", content=PNG)).status_code == 200
                _, most = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    assert most < 2 * pixels.nbytes, "beside the blank image that the worker has ready, somebody took memory"
    assert house.taken == 0


# No slot is lost.


class Held(Executor):
    """Decodes an image when it is told to."""

    def __init__(self) -> None:
        self.work: list[tuple[Future[Any], Any]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.work.append((future, lambda: fn(*args, **kwargs)))
        return future

    def go_on(self) -> None:
        for future, work in self.work:
            future.set_result(work())


async def test_a_request_that_is_cancelled_while_its_image_is_decoded_takes_no_slot(house: House) -> None:
    """Decoding goes on, and what comes of it is dropped."""
    held = Held()
    with served(house, FakeBackend()):
        async with application(house, InExecutor(held)) as http:
            asked = asyncio.create_task(http.post("/v1/classify", content=PNG))
            await until(lambda: bool(held.work), "the image to be decoded")
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            held.go_on()
            await asyncio.sleep(0.01)
            assert house.taken == 0


async def test_a_request_that_is_cancelled_while_its_image_is_computed_frees_its_slot(house: House) -> None:
    """At once, not when the worker is done."""
    backend = FakeBackend()
    with served(house, backend):
        async with application(house, InExecutor(Inline())) as http:
            backend.may_answer.clear()
            asked = asyncio.create_task(http.post("/v1/classify", content=PNG))
            await begun(backend)
            assert house.taken == 1
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            assert house.taken == 0


class Inline(Executor):
    """Decodes at once."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


async def test_an_image_that_the_queue_refuses_frees_its_slot(house: House) -> None:
    """The others keep theirs."""
    backend = FakeBackend(ONE_AT_A_TIME)
    with served(house, backend, limits=QueueLimits(1)):
        async with application(house, InExecutor(Inline())) as http:
            backend.may_answer.clear()
            first = asyncio.create_task(http.post("/v1/classify", content=PNG))
            await begun(backend)
            both = [asyncio.create_task(http.post("/v1/classify", content=PNG)) for _ in range(2)]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            assert house.taken == 2
            backend.may_answer.set()
            answers = await asyncio.gather(first, *both)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429]
    assert house.taken == 0


async def test_an_image_whose_decoder_dies_takes_no_slot(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does its second try."""
    start = subprocess.Popen
    dies = "import os, socket\nlink = socket.socket(fileno=int(os.environ['TRIMVIT_DECODER_SOCKET']))\n"
    dies += f"link.sendall({STARTED!r})\nlink.recv(1)\nos.kill(os.getpid(), 11)"

    def popen(_: list[str], **options: Any) -> Any:
        return start([sys.executable, "-c", dies], **options)

    monkeypatch.setattr(decoder_process.subprocess, "Popen", popen)
    with served(house, FakeBackend()):
        async with application(house, DecodingProcesses(1, 60, memory_for(10**6))) as http:
            answer = await http.post("/v1/classify", content=PNG)
    assert answer.status_code == 422
    assert "the image crashed the decoder twice" in answer.text
    assert house.taken == 0
