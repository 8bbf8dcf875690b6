"""What a deployment promises beside classifying: probes, request ids, metrics, the model's description."""

import re

import httpx
import pytest

from app.settings import BUNDLED_MODEL
from tests.contract.deployments import Deployment
from tests.system.photographs import SHIPPED

CHINA = (SHIPPED / "china.jpg").read_bytes()


def get(deployment: Deployment, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"{deployment.url}{path}", headers=headers, timeout=60)


def test_it_is_alive_and_ready(deployment: Deployment) -> None:
    """/livez and /readyz are well, and /readyz tells of every engine it knows."""
    assert get(deployment, "/livez").json() == {"status": "alive"}
    ready = get(deployment, "/readyz")
    assert ready.status_code == 200
    assert ready.json()["status"] == "ready"
    assert any(engine["ready"] for engine in ready.json()["engines"])


def test_the_model_is_described(deployment: Deployment) -> None:
    """/v1/models has the model that answers, with its labels."""
    (model,) = get(deployment, "/v1/models").json()["models"]
    assert model["name"] == BUNDLED_MODEL
    assert "church" in model["labels"]


def test_a_request_id_is_honoured(deployment: Deployment) -> None:
    """A sound X-Request-ID comes back, once, on answers and on problems alike."""
    for path in ("/livez", "/v1/nothing"):
        given = "client-7/part:2"
        assert get(deployment, path, **{"X-Request-ID": given}).headers.get_list("X-Request-ID") == [given]


@pytest.mark.parametrize("given", ["", "spaces are not sound", "x" * 200])
def test_where_there_is_no_sound_request_id_one_is_made(deployment: Deployment, given: str) -> None:
    """Without one, or with one that would spoil a log, the answer has one of the server's own."""
    headers = {"X-Request-ID": given} if given else {}
    (made,) = get(deployment, "/livez", **headers).headers.get_list("X-Request-ID")
    assert re.fullmatch(r"[0-9a-f-]{32,36}", made)


def test_metrics_count_what_was_done(deployment: Deployment) -> None:
    """/metrics counts requests, images, phases and refusals of the whole deployment, whichever of its
    processes is asked."""
    names = {
        "requests": ("trimvit_requests_total", {"route": "/v1/classify", "status": "200"}),
        "images": ("trimvit_images_total", {"outcome": "answered"}),
        "phases": ("trimvit_phase_seconds_count", {"phase": "compute"}),
        "applied": ("trimvit_applied_keep_ratio_count", {}),
        "refused": ("trimvit_refusals_total", {"reason": "undecodable-image"}),
    }

    def counts() -> dict[str, float]:
        return {key: deployment.metric(name, **labels) for key, (name, labels) in names.items()}

    before = counts()
    for _ in range(6):
        assert deployment.classify(CHINA, keep_ratio=0.3).status_code == 200
    assert deployment.classify(b"no image").status_code == 422
    after = counts()
    rose = {key: after[key] - before[key] for key in names}
    assert rose == {"requests": 6, "images": 6, "phases": 6, "applied": 6, "refused": 1}
    assert deployment.metric("trimvit_queue_limit_images") > 0


def test_the_interface_describes_itself(deployment: Deployment) -> None:
    """/openapi.json and /docs are there."""
    assert "/v1/classify" in get(deployment, "/openapi.json").json()["paths"]
    assert get(deployment, "/docs").status_code == 200
