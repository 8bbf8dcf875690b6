"""What a deployment promises beside classifying: probes, request ids, metrics, the model's description."""

import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from models.bundled import BUNDLED_MODEL
from tests.contract.deployments import Deployment, result_of
from tests.deploy.promql import TARGET_LABELS, exposed
from tests.system.photographs import SHIPPED, photographs
from tests.system.server import samples, wait_until

CHINA = (SHIPPED / "china.jpg").read_bytes()


def get(deployment: Deployment, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"{deployment.url}{path}", headers=headers, timeout=60)


def test_it_is_alive_and_ready(deployment: Deployment) -> None:
    """/livez and /readyz are well, and /readyz tells of every worker it knows."""
    assert get(deployment, "/livez").json() == {"status": "alive"}
    ready = get(deployment, "/readyz")
    assert ready.status_code == 200
    assert ready.json()["status"] == "ready"
    assert any(worker["ready"] for worker in ready.json()["engines"])


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


def test_metrics_add_up_to_what_the_answers_say(deployment: Deployment) -> None:
    """Ratios, patches and compute of images that were answered at once, at whichever worker, are counted as
    their answers tell them."""
    ratios = [0.3, 0.45, 0.5, 0.7, 0.9, 1.0] * 4
    names = (
        *("trimvit_images_total", "trimvit_patches_kept_total", "trimvit_patches_pruned_total"),
        *("trimvit_batch_images_sum", "trimvit_requested_keep_ratio_sum", "trimvit_applied_keep_ratio_sum"),
        *("trimvit_compute_unpruned_macs_total", "trimvit_compute_saved_macs_total"),
    )
    before = {name: deployment.metric(name) for name in names}

    def rise(name: str) -> float:
        return deployment.metric(name) - before[name]

    with ThreadPoolExecutor(8) as pool:
        asked = zip(photographs(len(ratios)), ratios, strict=True)
        responses = list(pool.map(lambda pair: deployment.classify(pair[0], keep_ratio=pair[1]), asked))
    results = [result_of(response) for response in responses]
    wait_until(lambda: rise("trimvit_images_total") == len(ratios), "all images to be counted")
    kept = sum(result["patches"]["kept"] for result in results)
    assert rise("trimvit_patches_kept_total") == kept
    assert rise("trimvit_patches_pruned_total") == 256 * len(ratios) - kept
    assert rise("trimvit_batch_images_sum") == len(ratios)
    assert rise("trimvit_requested_keep_ratio_sum") == pytest.approx(sum(ratios))
    assert rise("trimvit_applied_keep_ratio_sum") == pytest.approx(sum(ratios))
    saved = rise("trimvit_compute_saved_macs_total") / rise("trimvit_compute_unpruned_macs_total")
    assert saved == pytest.approx(1 - sum(result["compute"] for result in results) / len(ratios), rel=1e-5)


# What never happened here has no sample.
RARE = {"trimvit_agreement_checks_total", "trimvit_incidents_total"}


def test_metrics_have_the_same_names_and_labels_everywhere(deployment: Deployment) -> None:
    """Every metric is on the page, with its own labels; beside them only Ray's replica may be named."""
    deployment.classify(CHINA, keep_ratio=0.3)
    deployment.classify(b"no image")
    page = {(name, frozenset(dict(labels))) for name, labels in samples(deployment.url) if "trimvit_" in name}
    ours = {(name, labels - TARGET_LABELS) for name, labels in exposed().items()}
    beside = {"replica"} if any("replica" in labels for _, labels in page) else set[str]()
    assert {(name, labels - beside) for name, labels in page} <= ours
    assert all(beside <= labels for _, labels in page)
    assert {name for name, _ in ours} - {name for name, _ in page} <= RARE


def test_the_interface_describes_itself(deployment: Deployment) -> None:
    """/openapi.json and /docs are there."""
    assert "/v1/classify" in get(deployment, "/openapi.json").json()["paths"]
    assert get(deployment, "/docs").status_code == 200
