"""What every route that answers images promises, whoever wrote its protocol."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from app.main import create_app
from app.settings.settings import Settings
from tests.app.fakes import COMPUTE_S, QUEUE_S, FakeDispatch
from tests.app.http.image_routes import IMAGE_ROUTES, Ask

KEY = "alice-0123456789"

each_route = pytest.mark.parametrize("ask", IMAGE_ROUTES.values(), ids=map(" ".join, IMAGE_ROUTES))


def test_every_route_that_takes_a_body_is_tried_here() -> None:
    """A new route that answers images must be added to the table, and so to all tests of this file."""
    paths = create_app(Settings(), FakeDispatch()).openapi()["paths"]
    taking = {(path, method.upper()) for path, methods in paths.items() for method in methods}
    of_regions = {route for route in taking if "sharedmemory" in route[0]}
    assert {route for route in taking if route[1] != "GET"} - of_regions == set(IMAGE_ROUTES)


@each_route
def test_the_total_time_is_that_of_the_request(
    client: TestClient, dispatch: FakeDispatch, metric: Callable[..., float], ask: Ask
) -> None:
    """Server-Timing and the metrics name one total: no phase is longer, and the client waited at least so
    long."""
    dispatch.takes_its_time = True
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
    client: TestClient, dispatch: FakeDispatch, metric: Callable[..., float], ask: Ask
) -> None:
    """Answered ones and those for which no worker became ready."""
    answered = metric("trimvit_images_total", outcome="answered")
    refused = metric("trimvit_images_total", outcome="not-ready")
    assert ask(client, {}).status_code == 200
    dispatch.model = None
    assert ask(client, {}).status_code == 503
    assert metric("trimvit_images_total", outcome="answered") == answered + 1
    assert metric("trimvit_images_total", outcome="not-ready") == refused + 1


@each_route
def test_what_is_no_number_is_never_answered(client: TestClient, dispatch: FakeDispatch, ask: Ask) -> None:
    """Scores that overflowed are a fault that is told, on every route; JSON has no NaN."""
    dispatch.overflows = True
    response = ask(client, {})
    assert response.status_code == 500
    assert "are not finite numbers: toy overflows in float32" in response.text
    assert "NaN" not in response.text


@each_route
@pytest.mark.parametrize("was_ready", [True, False])
def test_a_worker_is_waited_for_until_the_deadline(
    client: TestClient, dispatch: FakeDispatch, ask: Ask, was_ready: bool
) -> None:
    """The deadline that the request names, from when it came, whether or not the model is known already."""
    dispatch.model, dispatch.was_ready = None, was_ready
    ask(client, {"deadline_ms": 7000})
    (waited_s,) = dispatch.waits_s
    assert 0 < waited_s < 7.0


@each_route
def test_a_deadline_that_has_passed_when_the_request_is_there_is_told_at_once(
    dispatch: FakeDispatch, ask: Ask
) -> None:
    """504 says which one it was; no worker is waited for or asked."""
    app = create_app(Settings(), dispatch)

    async def on_a_slow_line(scope: Scope, receive: Receive, send: Send) -> None:
        """The head came ten seconds before the body."""
        scope.setdefault("state", {})["arrived"] = time.perf_counter() - 10
        await app(scope, receive, send)

    response = ask(TestClient(on_a_slow_line), {"deadline_ms": 9000})
    assert response.status_code == 504
    assert "the deadline of 9000 ms passed before the whole request had arrived" in response.text
    assert dispatch.waits_s == dispatch.questions == dispatch.expected == []


# The highest priority of the setting, and of the caller's key: what may be asked for.
PRIORITIES = [
    ("normal", None, ("normal", "batch")),
    ("high", None, ("high", "normal", "batch")),
    ("batch", None, ("batch",)),
    ("normal", "high", ("high", "normal", "batch")),
    ("high", "batch", ("batch",)),
]


@each_route
@pytest.mark.parametrize(("highest", "of_the_key", "allowed"), PRIORITIES, ids=str)
def test_a_caller_gets_the_priorities_that_the_operator_allows(
    make_client: Callable[..., TestClient],
    dispatch: FakeDispatch,
    tmp_path: Path,
    ask: Ask,
    highest: str,
    of_the_key: str | None,
    allowed: tuple[str, ...],
) -> None:
    """By the line of its key, else by the setting; what is above is refused with 403 that says what is
    allowed and who can allow more, and is never lowered silently."""
    keys = tmp_path / "keys"
    keys.write_text(f"alice:{KEY}" + (f" priority={of_the_key}" if of_the_key else ""))
    client = make_client(max_priority=highest, api_keys_file=keys)
    client.headers["X-API-Key"] = KEY
    for priority in ("high", "normal", "batch"):
        dispatch.questions.clear()
        response = ask(client, {"priority": priority})
        if priority in allowed:
            assert response.status_code == 200, response.text
            assert [question.priority for question in dispatch.questions] == [priority]
        else:
            assert response.status_code == 403
            assert dispatch.questions == []
            assert f"use {' or '.join(allowed)}" in response.text
            assert "--max-priority" in response.text


@each_route
@pytest.mark.parametrize(("highest", "given"), [("high", "normal"), ("normal", "normal"), ("batch", "batch")])
def test_who_asks_for_no_priority_is_never_refused_for_it(
    make_client: Callable[..., TestClient], dispatch: FakeDispatch, ask: Ask, highest: str, given: str
) -> None:
    """They get normal, or the highest that they may ask for."""
    assert ask(make_client(max_priority=highest), {}).status_code == 200
    assert [question.priority for question in dispatch.questions] == [given]


def test_tritons_default_priority_is_none(
    make_client: Callable[..., TestClient], dispatch: FakeDispatch
) -> None:
    """Its clients send 0 where nobody chose a priority."""
    ask = IMAGE_ROUTES["/v2/models/{model_name}/infer", "POST"]
    assert ask(make_client(max_priority="batch"), {"priority": 0}).status_code == 200
    assert [question.priority for question in dispatch.questions] == ["batch"]
