"""The whole way, in real processes, with the bundled model."""

import base64
import io
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from app.images import ImageLimits, decode
from app.settings import BUNDLED_MODEL
from models.classifier import Classifier, ImageRequest
from models.device import choose_dtype
from models.schedule import Pruning
from models.zoo import load
from tests.system.hostile import hostile_requests
from tests.system.photographs import SHIPPED, photographs
from tests.system.server import Server, is_ready, running_server, wait_until

# bfloat16 keeps 8 bits: a probability moves by up to about a hundredth with the company in the batch.
SCORE_TOLERANCE = 0.03
CHINA = (SHIPPED / "china.jpg").read_bytes()


def classify(server: Server, image: bytes, **options: object) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v1/classify",
        params={name: str(value) for name, value in options.items()},
        content=image,
        headers={"Content-Type": "image/jpeg"},
        timeout=60,
    )


def test_a_photograph_comes_back_with_labels_ratio_times_and_mask(server: Server) -> None:
    """A POSTed photograph is answered with labels, its keep ratio, its latency and its mask."""
    response = classify(server, CHINA, keep_ratio=0.5, mask="png", mask_stages=True)
    assert response.status_code == 200, response.text
    body = response.json()
    (result,) = body["results"]
    assert body["model"] == BUNDLED_MODEL
    assert result["keep_ratio"] == 0.5
    assert result["patches"] == {"total": 256, "kept": 32, "per_stage": [128, 64, 32], "grid": [16, 16]}
    assert 0.4 < result["compute"] < 0.6
    assert len(result["labels"]) == 5
    assert sum(label["score"] for label in result["labels"]) <= 1.001
    assert set(body["timings_ms"]) == {"decode", "queue", "compute", "total"}
    assert "total;dur=" in response.headers["Server-Timing"]
    assert [stage["block"] for stage in result["mask"]] == [4, 7, 10]
    pictures = [Image.open(io.BytesIO(base64.b64decode(stage["png"]))) for stage in result["mask"]]
    brightness = [np.asarray(picture).mean() for picture in pictures]
    assert brightness == sorted(brightness, reverse=True), "each stage dims more"


def test_answers_under_concurrency_equal_each_image_alone(server: Server) -> None:
    """200 photographs by 16 clients, each at its own ratio, are answered as each alone offline, in mixed
    batches."""
    draw = random.Random(11)
    images = photographs(200)
    ratios = [round(draw.uniform(0.3, 1.0), 4) for _ in images]
    ragged_before = server.metric("trimvit_batches_total", form="ragged")
    with ThreadPoolExecutor(16) as pool:
        responses = list(
            pool.map(
                lambda pair: classify(server, pair[0], keep_ratio=pair[1]), zip(images, ratios, strict=True)
            )
        )
    assert [response.status_code for response in responses] == [200] * 200
    assert server.metric("trimvit_batches_total", form="ragged") > ragged_before, "no mixed batch was formed"

    loaded = load(BUNDLED_MODEL)
    alone = Classifier(loaded.model, loaded.input, "cpu", choose_dtype("cpu"))
    for image, ratio, response in zip(images, ratios, responses, strict=True):
        pixels = torch.from_numpy(decode(image, loaded.input, ImageLimits(64_000_000)).copy())
        (expected,) = alone.classify(pixels.unsqueeze(0), [ImageRequest(Pruning(ratio), top_k=10)])
        scores = dict(zip(expected.classes.tolist(), expected.scores.tolist(), strict=True))
        (result,) = response.json()["results"]
        assert result["patches"]["per_stage"] == list(expected.kept_counts)
        for label in result["labels"]:
            assert label["score"] == pytest.approx(scores[label["index"]], abs=SCORE_TOLERANCE)
        best = result["labels"][0]["index"]
        assert scores[best] >= max(scores.values()) - SCORE_TOLERANCE, "another label than alone"


def test_hostile_bodies_are_refused_and_harm_nobody(server: Server) -> None:
    """A hundred broken or hostile requests each get the right 4xx, as problem+json or in the shape that the
    route's clients know; good ones beside them are answered."""
    hostile = hostile_requests()
    assert len(hostile) >= 100
    good = photographs(40)
    with ThreadPoolExecutor(8) as pool:
        beside = [pool.submit(classify, server, image, keep_ratio=0.5) for image in good]
        answers = list(pool.map(lambda case: (case, case.send(server.url)), hostile))
        assert [future.result().status_code for future in beside] == [200] * len(good)
    for case, response in answers:
        assert response.status_code == case.status, (
            f"{case.name}: {response.status_code} {response.text[:300]}"
        )
        if case.path.startswith("/v2") or case.path == "/":
            assert response.json()["error"], case.name
            continue
        assert response.headers["Content-Type"] == "application/problem+json", case.name
        assert response.json()["detail"], case.name
    assert is_ready(server.url)


def test_the_front_end_is_small_and_free_of_torch(server: Server) -> None:
    """An HTTP process stays under 150 MB and has not loaded torch; processes carry their titles."""
    (front,) = server.processes("trimvit: http 0")
    maps = Path(f"/proc/{front.pid}/maps").read_text()
    assert "libtorch" not in maps
    assert front.memory_info().rss < 150e6
    (engine,) = server.processes("trimvit: engine cpu:0")
    assert "libtorch" in Path(f"/proc/{engine.pid}/maps").read_text(), "the check above can fail"
    assert " ".join(psutil.Process(server.supervisor.pid).cmdline()).startswith("trimvit: supervisor")


def test_sigterm_under_load_answers_what_was_accepted(tmp_path: Path) -> None:
    """On SIGTERM every request on the way is answered and the exit code is 0."""
    with running_server(tmp_path) as server, ThreadPoolExecutor(24) as pool:
        answers = [pool.submit(classify, server, image) for image in photographs(24)]
        wait_until(
            lambda: server.metric("trimvit_requested_keep_ratio_count") >= 24, "all requests to be accepted"
        )
        server.supervisor.send_signal(signal.SIGTERM)
        assert [answer.result().status_code for answer in answers] == [200] * 24
        assert server.supervisor.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/livez")


def test_a_killed_engine_is_replaced_and_its_requests_are_answered(tmp_path: Path) -> None:
    """kill -9 of the engine costs time, not an answer; see test_faults.py for all else that may go wrong."""
    with running_server(tmp_path) as server, ThreadPoolExecutor(16) as pool:
        (engine,) = server.processes("trimvit: engine")
        answers = [pool.submit(classify, server, image) for image in photographs(32)]
        wait_until(
            lambda: server.metric("trimvit_requested_keep_ratio_count") >= 16, "requests to be accepted"
        )
        engine.kill()
        assert [answer.result().status_code for answer in answers] == [200] * 32
        assert server.metric("trimvit_restarts_total", process="engine-0") == 1
