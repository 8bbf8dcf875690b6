"""What every route that answers images promises, whoever wrote its protocol."""

import re
import time
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from app.main import create_app
from app.settings import Settings
from tests.app.fakes import COMPUTE_S, QUEUE_S, FakeEngines
from tests.app.http.image_routes import IMAGE_ROUTES, Ask

each_route = pytest.mark.parametrize("ask", IMAGE_ROUTES.values(), ids=map(" ".join, IMAGE_ROUTES))


def test_every_route_that_takes_a_body_is_tried_here() -> None:
    """A new route that answers images must be added to the table, and so to all tests of this file."""
    paths = create_app(Settings(), FakeEngines()).openapi()["paths"]
    taking = {(path, method.upper()) for path, methods in paths.items() for method in methods}
    assert {route for route in taking if route[1] != "GET"} == set(IMAGE_ROUTES)


@each_route
def test_the_total_time_is_that_of_the_request(
    client: TestClient, engines: FakeEngines, metric: Callable[..., float], ask: Ask
) -> None:
    """Server-Timing and the metrics name one total: no phase is longer, and the client waited at least so
    long."""
    engines.takes_its_time = True
    before = {phase: metric("trimvit_phase_seconds_sum", phase=phase) for phase in ("compute", "total")}
    count = metric("trimvit_phase_seconds_count", phase="total")
    started = time.perf_counter()
    response = ask(client, {})
    waited_ms = (time.perf_counter() - started) * 1000
    assert response.status_code == 200, response.text
    found = re.findall(r"(\w+);dur=([\d.]+)", response.headers["Server-Timing"])
    timings = {phase: float(duration) for phase, duration in found}
    assert list(timings) == ["decode", "queue", "compute", "total"]
    assert (timings["queue"], timings["compute"]) == (QUEUE_S * 1000, COMPUTE_S * 1000)
    assert timings["decode"] + timings["queue"] + timings["compute"] <= timings["total"] <= waited_ms
    assert metric("trimvit_phase_seconds_count", phase="total") == count + 1
    counted = metric("trimvit_phase_seconds_sum", phase="total") - before["total"]
    assert counted * 1000 == pytest.approx(timings["total"], abs=0.001)
    assert metric("trimvit_phase_seconds_sum", phase="compute") - before["compute"] == pytest.approx(
        COMPUTE_S
    )


@each_route
def test_images_are_counted_by_how_they_ended(
    client: TestClient, engines: FakeEngines, metric: Callable[..., float], ask: Ask
) -> None:
    """Answered ones and those for which no engine became ready."""
    answered = metric("trimvit_images_total", outcome="answered")
    refused = metric("trimvit_images_total", outcome="not-ready")
    assert ask(client, {}).status_code == 200
    engines.model = None
    assert ask(client, {}).status_code == 503
    assert metric("trimvit_images_total", outcome="answered") == answered + 1
    assert metric("trimvit_images_total", outcome="not-ready") == refused + 1


@each_route
@pytest.mark.parametrize("was_ready", [True, False])
def test_an_engine_is_waited_for_until_the_deadline(
    client: TestClient, engines: FakeEngines, ask: Ask, was_ready: bool
) -> None:
    """The deadline that the request names, from when it came, whether or not the model is known already."""
    engines.model, engines.was_ready = None, was_ready
    ask(client, {"deadline_ms": 7000})
    (waited_s,) = engines.waits_s
    assert 0 < waited_s < 7.0


@each_route
def test_a_deadline_that_has_passed_when_the_request_is_there_is_told_at_once(
    engines: FakeEngines, ask: Ask
) -> None:
    """504 says which one it was; no engine is waited for or asked."""
    app = create_app(Settings(), engines)

    async def on_a_slow_line(scope: Scope, receive: Receive, send: Send) -> None:
        """The head came ten seconds before the body."""
        scope.setdefault("state", {})["arrived"] = time.perf_counter() - 10
        await app(scope, receive, send)

    response = ask(TestClient(on_a_slow_line), {"deadline_ms": 9000})
    assert response.status_code == 504
    assert "the deadline of 9000 ms passed while the request came" in response.text
    assert engines.waits_s == engines.questions == engines.expected == []
