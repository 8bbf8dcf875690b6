"""What surrounds every request: its id, and what is counted of it."""

import re
from collections.abc import Callable

import pytest
from prometheus_client import REGISTRY
from starlette.testclient import TestClient

from app.errors import QueueFull
from tests.app.fakes import FakeDispatch, encoded
from tests.app.http.conftest import Classify

Metric = Callable[..., float]
MADE_UP = re.compile(r"[0-9a-f]{32}")


@pytest.mark.parametrize(
    "request_id", ["trace-4711", "0", "A.b:c/d+e=f_g", "00-4bf92f3577b34da6a3ce929d0e0e4736-01", "x" * 128]
)
@pytest.mark.parametrize("path", ["/livez", "/nowhere"])
def test_a_sound_request_id_comes_back(client: TestClient, path: str, request_id: str) -> None:
    """The client's id is kept, on answers and on errors, so that logs can be joined."""
    assert client.get(path, headers={"X-Request-ID": request_id}).headers["X-Request-ID"] == request_id


@pytest.mark.parametrize(
    "request_id", ["", "two words", "x" * 129, 'quo"te', "new\tline", "<script>", "naïve", "a,b"]
)
def test_another_request_id_is_replaced(client: TestClient, request_id: str) -> None:
    """What could break a log line is not repeated; the request gets an id of ours."""
    response = client.get("/livez", headers={"X-Request-ID": request_id.encode("latin-1")})
    assert MADE_UP.fullmatch(response.headers["X-Request-ID"])


def test_every_request_has_an_id_of_its_own(client: TestClient) -> None:
    """Without an id, one is made up, and not twice the same."""
    ids = {client.get("/livez").headers["X-Request-ID"] for _ in range(5)}
    assert len(ids) == 5
    assert all(MADE_UP.fullmatch(request_id) for request_id in ids)


@pytest.mark.parametrize(
    ("method", "path", "labels"),
    [
        ("GET", "/livez", {"route": "/livez", "method": "GET", "status": "200"}),
        ("GET", "/livez?secret=1", {"route": "/livez", "method": "GET", "status": "200"}),
        ("POST", "/v1/classify", {"route": "/v1/classify", "method": "POST", "status": "422"}),
        ("PUT", "/v1/classify", {"route": "/v1/classify", "method": "PUT", "status": "405"}),
        ("GET", "/users/4711", {"route": "unmatched", "method": "GET", "status": "404"}),
        ("PROPFIND", "/users/4712", {"route": "unmatched", "method": "other", "status": "404"}),
    ],
)
def test_requests_are_counted_by_route_method_and_status(
    client: TestClient, metric: Metric, method: str, path: str, labels: dict[str, str]
) -> None:
    """Each request moves one counter by one, and the time of its route."""
    counted = metric("trimvit_requests_total", **labels)
    timed = metric("trimvit_request_seconds_count", route=labels["route"])
    client.request(method, path)
    assert metric("trimvit_requests_total", **labels) == counted + 1
    assert metric("trimvit_request_seconds_count", route=labels["route"]) == timed + 1


def test_labels_do_not_grow_with_what_clients_invent(client: TestClient) -> None:
    """Paths and methods that nobody serves share one label."""
    for number in range(20):
        client.request(f"VERB{number}", f"/invented/{number}")
        client.get(f"/v1/classify/{number}")
    labels = [
        sample.labels
        for family in REGISTRY.collect()
        for sample in family.samples
        if family.name in ("trimvit_requests", "trimvit_request_seconds")
    ]
    assert labels
    assert not any("invented" in str(label) or "VERB" in str(label) for label in labels)
    assert not any(re.search(r"\d", re.sub(r"^/v\d", "", label["route"])) for label in labels)


def test_an_unforeseen_fault_is_counted_as_a_500(
    classify: Classify, dispatch: FakeDispatch, metric: Metric
) -> None:
    """A bug of ours shows on the dashboards, too."""
    labels = {"route": "/v1/classify", "method": "POST", "status": "500"}
    before = (
        metric("trimvit_requests_total", **labels),
        metric("trimvit_refusals_total", reason="internal-fault"),
    )
    dispatch.fails = ZeroDivisionError()
    classify()
    after = (
        metric("trimvit_requests_total", **labels),
        metric("trimvit_refusals_total", reason="internal-fault"),
    )
    assert after == (before[0] + 1, before[1] + 1)


def test_images_and_phases_are_counted_by_how_they_ended(classify: Classify, metric: Metric) -> None:
    """Answered images count one each, with the time of each phase and the ratio that was asked for."""
    phases = ["decode", "queue", "compute", "total"]

    def now() -> list[float]:
        return [
            metric("trimvit_images_total", outcome="answered"),
            *(metric("trimvit_phase_seconds_count", phase=phase) for phase in phases),
            metric("trimvit_requested_keep_ratio_count"),
        ]

    before = now()
    queue, compute = (metric("trimvit_phase_seconds_sum", phase=phase) for phase in ("queue", "compute"))
    ratios = metric("trimvit_requested_keep_ratio_sum")
    assert classify(files=[("image", encoded())] * 3, data={"keep_ratio": "0.5"}).status_code == 200
    assert [late - early for early, late in zip(before, now(), strict=True)] == [3] * 6
    assert metric("trimvit_phase_seconds_sum", phase="queue") - queue == pytest.approx(3 * 0.003)
    assert metric("trimvit_phase_seconds_sum", phase="compute") - compute == pytest.approx(3 * 0.007)
    assert metric("trimvit_requested_keep_ratio_sum") - ratios == pytest.approx(1.5)


def test_refused_images_are_counted_by_the_problem(
    classify: Classify, dispatch: FakeDispatch, metric: Metric
) -> None:
    """All images of a refused request count under the problem's type; the request counts one refusal."""
    dispatch.fails = QueueFull("full", retry_after_s=1.0)
    images = metric("trimvit_images_total", outcome="queue-full")
    refusals = metric("trimvit_refusals_total", reason="queue-full")
    answered = metric("trimvit_images_total", outcome="answered")
    assert classify(files=[("image", encoded())] * 3).status_code == 429
    assert metric("trimvit_images_total", outcome="queue-full") == images + 3
    assert metric("trimvit_refusals_total", reason="queue-full") == refusals + 1
    assert metric("trimvit_images_total", outcome="answered") == answered
