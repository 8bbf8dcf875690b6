"""GET /v2/models/NAME/stats, in the words of Triton's statistics extension."""

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric, SummaryMetricFamily
from starlette.testclient import TestClient

from app.errors import QueueFull
from app.http.routes.open_inference.statistics import described
from tests.app.fakes import COMPUTE_S, LARGER, QUEUE_S, FakeDispatch, encoded

PATHS = ("/v2/models/toy/stats", "/v2/models/toy/versions/1/stats", "/v2/models/stats")


def statistics(client: TestClient, path: str = PATHS[0], model: int = 0) -> dict[str, Any]:
    response = client.get(path)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["model_stats"][model]
    return found


def gone(before: dict[str, Any], after: dict[str, Any]) -> dict[str, dict[str, int]]:
    """What came between the two, of each duration."""
    return {
        name: {part: after["inference_stats"][name][part] - value for part, value in duration.items()}
        for name, duration in before["inference_stats"].items()
    }


@pytest.mark.parametrize("path", PATHS)
def test_a_request_counts_once_and_each_of_its_images(client: TestClient, path: str) -> None:
    """Whatever route it took; its phases are those of one image, and no more than all that it took."""
    before = statistics(client, path)
    files = [("image", ("a.png", encoded(), "image/png"))] * 3
    assert client.post("/v1/classify", files=files).status_code == 200
    after = statistics(client, path)
    assert after["name"] == "toy"
    assert after["version"] == "1"
    assert after["inference_count"] == before["inference_count"] + 3
    assert after["last_inference"] > before["last_inference"]
    came = gone(before, after)
    assert came["fail"] == {"count": 0, "ns": 0}
    assert {came[name]["count"] for name in came if name != "fail"} == {1}
    assert came["queue"]["ns"] == pytest.approx(QUEUE_S * 1e9, rel=1e-6)
    assert came["compute_infer"]["ns"] == pytest.approx(COMPUTE_S * 1e9, rel=1e-6)
    assert came["compute_input"]["ns"] > 0
    assert came["compute_output"]["ns"] > 0


def test_phases_come_to_no_more_than_the_request(client: TestClient, dispatch: FakeDispatch) -> None:
    """Where the stand-in takes the time that it says."""
    dispatch.takes_its_time = True
    before = statistics(client)
    assert client.post("/v1/classify", content=encoded()).status_code == 200
    came = gone(before, statistics(client))
    phases = ("queue", "compute_input", "compute_infer", "compute_output")
    assert sum(came[name]["ns"] for name in phases) <= came["success"]["ns"]


@pytest.mark.parametrize("content", [encoded(), b"no image"])
def test_a_request_that_ends_in_an_error_has_failed(
    client: TestClient, dispatch: FakeDispatch, content: bytes
) -> None:
    """Refused, or not to be decoded."""
    dispatch.fails = QueueFull("full", retry_after_s=1)
    before = statistics(client)
    assert client.post("/v1/classify", content=content).status_code in (422, 429)
    after = statistics(client)
    came = gone(before, after)
    assert came["fail"]["count"] == 1
    assert came["fail"]["ns"] > 0
    assert all(came[name] == {"count": 0, "ns": 0} for name in came if name != "fail")
    assert after["inference_count"] == before["inference_count"]


def test_of_errors_each_a_request_is_a_success_if_any_image_was_answered(client: TestClient) -> None:
    """Only its answered images count; without one it has failed."""
    before = statistics(client)
    sound, broken = ("image", ("a.png", encoded())), ("image", ("b.png", b"no image"))
    client.post("/v1/classify?errors=each", files=[sound, broken, sound])
    client.post("/v1/classify?errors=each", files=[broken, broken])
    after = statistics(client)
    came = gone(before, after)
    assert (came["success"]["count"], came["fail"]["count"]) == (1, 1)
    assert after["inference_count"] == before["inference_count"] + 2


def test_answers_from_the_cache_took_no_phase_but_the_writing(make_client: Callable[..., TestClient]) -> None:
    client = make_client(answer_cache_bytes=1_000_000)
    image = encoded()
    assert client.post("/v1/classify", content=image).status_code == 200
    before = statistics(client)
    assert client.post("/v1/classify", content=image).status_code == 200
    counts = {name: came["count"] for name, came in gone(before, statistics(client)).items()}
    assert counts == {
        "success": 1,
        "fail": 0,
        "queue": 0,
        "compute_input": 0,
        "compute_infer": 0,
        "compute_output": 1,
    }


def test_models_are_counted_apart(client: TestClient, dispatch: FakeDispatch) -> None:
    """And all are told, the default one first."""
    dispatch.others = (LARGER,)
    before = [statistics(client, "/v2/models/stats", place) for place in range(2)]
    assert client.post("/v1/classify?model=larger", content=encoded()).status_code == 200
    after = [statistics(client, "/v2/models/stats", place) for place in range(2)]
    assert [each["name"] for each in after] == ["toy", "larger"]
    assert [b["inference_count"] - a["inference_count"] for a, b in zip(before, after, strict=True)] == [0, 1]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v2/models/vit/stats", "there is no model 'vit'"),
        ("/v2/models/toy/versions/2/stats", "no version '2'"),
    ],
)
def test_another_model_is_not_found(client: TestClient, path: str, words: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert words in response.json()["error"]


def test_while_no_model_is_known_there_are_none(client: TestClient, dispatch: FakeDispatch) -> None:
    dispatch.model = None
    assert client.get("/v2/models/stats").json() == {"model_stats": []}
    assert client.get("/v2/models/toy/stats").status_code == 503


def batches(**sizes: tuple[int, float]) -> Metric:
    family = SummaryMetricFamily("trimvit_model_batch_seconds", "Batches.", labels=["model", "images"])
    for size, (count, seconds) in sizes.items():
        family.add_metric(["toy", size.removeprefix("_")], count_value=count, sum_value=seconds)
    return family


def test_batches_are_told_by_their_size() -> None:
    """In ascending order, as numbers; those beyond what is counted one by one only in the sum."""
    family = batches(_10=(3, 0.5), _2=(7, 0.25), more=(2, 4.0))
    (stats,) = described([family], ["toy"]).model_stats
    assert stats.execution_count == 12
    assert [
        (each.batch_size, each.compute_infer.count, each.compute_infer.ns) for each in stats.batch_stats
    ] == [
        (2, 7, 250_000_000),
        (10, 3, 500_000_000),
    ]


def test_a_model_that_has_done_nothing_has_zeros() -> None:
    """And what another one did is not its own."""
    (stats,) = described([batches(_1=(1, 0.1))], ["larger"]).model_stats
    assert (stats.inference_count, stats.execution_count, stats.last_inference) == (0, 0, 0)
    assert stats.batch_stats == []
    assert stats.inference_stats.success.count == 0
    assert described(CollectorRegistry().collect(), []).model_stats == []
