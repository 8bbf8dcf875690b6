"""What an operator sees: every metric moves by what clients were told, over all processes, and Prometheus has
an answer to every query of the dashboard."""

import io
import json
import math
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from prometheus_client.metrics import MetricWrapperBase

from app.dispatch.policy.agreement import bucket_of
from app.telemetry import metrics
from models.cascade import second_run_compute
from models.load import LoadedModel, load
from models.schedule import Pruning, compute, keep_ratio_for, macs
from tests.deploy.promql import dashboard_queries
from tests.system.prometheus import needs_prometheus, running_prometheus
from tests.system.server import Samples, Server, running_server, wait_until
from tests.system.small_network import FIRST, PHOTOGRAPHS

PHASES = ("decode", "queue", "compute", "total")
MAX_BATCH_TOKENS, MAX_QUEUE_IMAGES = 34, 777
FLAGS = (
    *("--dtype", "float32", "--http-workers", "2", "--log-level", "debug", "--max-body-bytes", "1000000"),
    *("--agreement-share", "1"),
    *("--max-batch-tokens", str(MAX_BATCH_TOKENS), "--max-queue-images", str(MAX_QUEUE_IMAGES)),
)
# What is asked, one image after the other: every way to choose, and each more than once.
OPTIONS: tuple[dict[str, Any], ...] = (
    {"keep_ratio": 1.0},
    {"keep_ratio": 0.7},
    {"keep_ratio": 0.7, "criterion": "mad", "reducer": "fuse"},
    {"keep_ratio": 0.5, "reducer": "merge"},
    {"keep_ratio": 0.25, "mask": "grid"},
    {"compute": 0.6},
    {"keep_mass": 0.8},
    {"cascade": True},
)
# (what is sent, the problem's types that it may end in, whether it is known by then what its images ask for)
REFUSED: tuple[tuple[dict[str, Any], set[str], bool], ...] = (
    ({"content": b"no image"}, {"undecodable-image"}, True),
    (
        {"content": PHOTOGRAPHS[0], "params": {"deadline_ms": 1}},
        {"deadline-unmeetable", "deadline-passed"},
        True,
    ),
    ({"content": PHOTOGRAPHS[0], "params": {"keep_ratio": 1.5}}, {"invalid-value"}, False),
    ({"content": bytes(1_000_001)}, {"too-large"}, False),
    ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, {"unsupported-media-type"}, False),
    ({"content": b"{", "headers": {"Content-Type": "application/json"}}, {"unreadable-request"}, False),
)
ROUTE = "/v1/classify"


@dataclass
class Driven:
    """A server before and after requests of which everything that their clients saw is known."""

    server: Server
    network: LoadedModel
    before: Samples
    after: Samples = field(default_factory=dict)
    answers: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)  # (options, body)
    refusals: Counter[tuple[str, bool]] = field(
        default_factory=Counter
    )  # (the problem's type, known by then)
    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)  # (route, method, status)
    seconds: Counter[str] = field(default_factory=Counter)  # as their clients measured them, by route

    def rise(self, name: str, **labels: str) -> float:
        """By how much a sample has risen; it may be new."""
        key = (name, frozenset(labels.items()))
        return self.after.get(key, 0.0) - self.before.get(key, 0.0)

    def rises(self, name: str) -> dict[frozenset[tuple[str, str]], float]:
        """The same of all samples of that name that have risen, by their labels."""
        risen = {key[1]: self.rise(name, **dict(key[1])) for key in self.after if key[0] == name}
        return {labels: value for labels, value in risen.items() if value}

    def histogram(self, name: str, values: Iterable[float], *, rel: float = 1e-6, **labels: str) -> None:
        """Assert that a histogram has risen by these observations: count, sum and every bucket."""
        seen = list(values)
        assert self.rise(f"{name}_count", **labels) == len(seen)
        assert self.rise(f"{name}_sum", **labels) == pytest.approx(sum(seen), rel=rel)
        buckets = [
            key for key in self.after if key[0] == f"{name}_bucket" and set(labels.items()) < set(key[1])
        ]
        assert buckets
        for _, where in buckets:
            edge = float(dict(where)["le"])
            # An observation on an edge, told with rounding, may lie on either side of it.
            least, most = (sum(value <= edge + slack for value in seen) for slack in (-5e-6, 5e-6))
            assert least <= self.rise(f"{name}_bucket", **dict(where)) <= most, (name, edge)

    @property
    def model(self) -> str:
        """The name that the answers give."""
        (name,) = {body["model"] for _, body in self.answers}
        return str(name)

    @property
    def results(self) -> list[dict[str, Any]]:
        return [body["results"][0] for _, body in self.answers]

    def seconds_told(self, phase: str) -> list[float]:
        """What the answers said of a phase."""
        return [body["timings_ms"][phase] / 1000 for _, body in self.answers]

    def asked_ratios(self) -> list[float]:
        """The ratios that images asked for, themselves or as a compute."""
        arch, stages = self.network.model.arch, self.network.model.stages
        asked = [options for options, _ in self.answers]
        return [
            options["keep_ratio"]
            if "keep_ratio" in options
            else keep_ratio_for(arch, stages, options["compute"], "drop")
            for options in asked
            if "keep_ratio" in options or "compute" in options
        ] + [Pruning().keep_ratio] * sum(known for _, known in self.refusals.elements())

    def weights(self) -> list[int]:
        """What each image counted in its batch: the model's tokens times the compute that was foreseen."""
        arch = self.network.model.arch
        assert self.network.cascade is not None
        share = {"cascade": self.network.cascade.compute, "keep_mass": 1.0}
        return [
            round(
                (arch.patches + arch.prefix_tokens)
                * next((share[key] for key in asked if key in share), told)
            )
            for (asked, _), told in zip(self.answers, (one["compute"] for one in self.results), strict=True)
        ]

    @property
    def unpruned_macs(self) -> float:
        arch, stages = self.network.model.arch, self.network.model.stages
        return macs(arch, stages, (arch.patches,) * len(stages.blocks))

    def send(self, method: str, path: str, route: str, **request: Any) -> httpx.Response:
        began = time.perf_counter()
        response = httpx.request(method, self.server.url + path, timeout=60, **request)
        self.requests[route, method, response.status_code] += 1
        self.seconds[route] += time.perf_counter() - began
        return response

    def ask_everything(self) -> None:
        """Every way to choose and every way to be refused, one request after the other."""
        for options in OPTIONS:
            params = {key: str(value).lower() for key, value in options.items()}
            for photograph in PHOTOGRAPHS:
                response = self.send("POST", ROUTE, ROUTE, params=params, content=photograph)
                assert response.status_code == 200, response.text
                self.answers.append((options, response.json()))
        for request, slugs, known in REFUSED:
            problem = self.send("POST", ROUTE, ROUTE, **request).json()
            slug = problem["type"].removeprefix("urn:trimvit:problem:")
            assert slug in slugs
            self.refusals[slug, known and "bytes of the body had arrived" not in problem["detail"]] += 1

    def expected_checks(self) -> Counter[tuple[str, str]]:
        """(ratio bucket, outcome) of every pruned image, run again unpruned."""
        labels = [result["labels"][0]["index"] for result in self.results]
        unpruned = labels[: len(PHOTOGRAPHS)] * len(OPTIONS)  # the first that are asked for are not pruned
        return Counter(
            (bucket_of(result["keep_ratio"]), "agreed" if label == plain else "disagreed")
            for result, label, plain in zip(self.results, labels, unpruned, strict=True)
            if result["keep_ratio"] < 1
        )


@pytest.fixture(scope="module")
def watched(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the small network in several processes."""
    folder = tmp_path_factory.mktemp("watched")
    with running_server(folder, "--model", str(calibrated), *FLAGS) as server:
        yield server


@pytest.fixture(scope="module")
def driven(watched: Server, calibrated: Path) -> Driven:
    """The server, asked one thing after the other."""
    driven = Driven(watched, load(str(calibrated)), settled(watched))
    driven.ask_everything()
    for path, route, status in (("/livez", "/livez", 200), ("/nowhere", "unmatched", 404)):
        assert driven.send("GET", path, route).status_code == status
    assert driven.send("GET", ROUTE, ROUTE).status_code == 405
    checks = driven.expected_checks().total()
    wait_until(lambda: total(watched.samples(), "trimvit_agreement_checks_total") == checks, "the checks")
    driven.after = settled(watched)
    return driven


def settled(server: Server) -> Samples:
    """The page once all is counted: a request's counters move after its answer is out."""
    pages: list[Samples] = [server.samples()]

    def still() -> bool:
        pages.append(server.samples())
        return counted(pages[-1]) == counted(pages[-2])

    wait_until(still, "the metrics to settle")
    return pages[-1]


def labelled(page: Samples, name: str) -> list[tuple[dict[str, str], float]]:
    return [(dict(labels), value) for (found, labels), value in page.items() if found == name]


def total(page: Samples, name: str) -> float:
    return sum(value for _, value in labelled(page, name))


def counted(page: Samples) -> Samples:
    """All but what reading the page itself moves, and gauges."""
    return {
        key: value
        for key, value in page.items()
        if ("route", "/metrics") not in key[1] and key[0].endswith(("_total", "_count", "_sum"))
    }


# One check per metric.

CHECKS: dict[str, Callable[[Driven], None]] = {}


def of(metric: MetricWrapperBase) -> Callable[[Callable[[Driven], None]], Callable[[Driven], None]]:
    def keep(check: Callable[[Driven], None]) -> Callable[[Driven], None]:
        CHECKS[metric._name] = check
        return check

    return keep


@of(metrics.REQUESTS)
def each_request_counts_by_route_method_and_status(driven: Driven) -> None:
    risen = {
        (found["route"], found["method"], int(found["status"])): value
        for found, value in (
            (dict(labels), value) for labels, value in driven.rises("trimvit_requests_total").items()
        )
        if found["route"] != "/metrics"
    }
    assert risen == driven.requests


@of(metrics.REQUEST_SECONDS)
def a_request_takes_no_longer_than_its_client_waits(driven: Driven) -> None:
    for route in ("/livez", "unmatched", ROUTE):
        sent = sum(count for (where, _, _), count in driven.requests.items() if where == route)
        assert driven.rise("trimvit_request_seconds_count", route=route) == sent
        assert 0 < driven.rise("trimvit_request_seconds_sum", route=route) < driven.seconds[route]
    assert driven.rise("trimvit_request_seconds_sum", route=ROUTE) > sum(driven.seconds_told("total"))


@of(metrics.PHASE_SECONDS)
def phases_take_what_the_answers_say(driven: Driven) -> None:
    for phase in PHASES:
        driven.histogram("trimvit_phase_seconds", driven.seconds_told(phase), rel=1e-3, phase=phase)


@of(metrics.MODEL_REQUEST_SECONDS)
def requests_of_a_model_take_what_the_answers_say(driven: Driven) -> None:
    name, told = "trimvit_model_request_seconds", sum(driven.seconds_told("total"))
    success = {"model": driven.model, "outcome": "success"}
    assert driven.rise(f"{name}_count", **success) == len(driven.answers)
    # The answer is told its time before it is written.
    assert driven.rise(f"{name}_sum", **success) == pytest.approx(told, rel=0.05)
    assert driven.rise(f"{name}_count", model=driven.model, outcome="fail") <= driven.refusals.total()


@of(metrics.MODEL_REQUEST_IMAGES)
def every_request_had_one_image(driven: Driven) -> None:
    for sample in ("count", "sum"):
        risen = driven.rise(f"trimvit_model_request_images_{sample}", model=driven.model)
        assert risen == len(driven.answers)


@of(metrics.MODEL_PHASE_SECONDS)
def phases_of_a_model_take_what_the_answers_say(driven: Driven) -> None:
    for phase in ("decode", "queue", "compute"):
        labels = {"model": driven.model, "phase": phase}
        told = driven.seconds_told(phase)
        assert driven.rise("trimvit_model_phase_seconds_count", **labels) == len(told)
        assert driven.rise("trimvit_model_phase_seconds_sum", **labels) == pytest.approx(sum(told), rel=1e-3)


@of(metrics.MODEL_LAST_REQUEST)
def the_last_answer_is_not_long_ago(driven: Driven) -> None:
    key = ("trimvit_model_last_request_timestamp_seconds", frozenset({("model", driven.model)}))
    assert time.time() - 3600 < driven.after[key] <= time.time()


@of(metrics.ANSWER_CACHE_HITS)
@of(metrics.ANSWER_CACHE_MISSES)
@of(metrics.ANSWER_CACHE_EVICTIONS)
@of(metrics.ANSWER_CACHE_BYTES)
def a_cache_that_is_off_is_not_asked(driven: Driven) -> None:
    """What one that is on counts is in test_answer_cache.py."""
    for name in ("hits_total", "misses_total", "evictions_total", "bytes"):
        assert total(driven.after, f"trimvit_answer_cache_{name}") == 0


@of(metrics.IMAGES)
def each_image_counts_by_how_it_ended(driven: Driven) -> None:
    risen = {dict(labels)["outcome"]: value for labels, value in driven.rises("trimvit_images_total").items()}
    # The others were refused before it was known what they are.
    assert risen == {
        "answered": len(driven.answers),
        **{slug: count for (slug, known), count in driven.refusals.items() if known},
    }


@of(metrics.REQUESTED_KEEP_RATIO)
def a_ratio_that_is_asked_for_counts_itself_or_as_compute(driven: Driven) -> None:
    driven.histogram("trimvit_requested_keep_ratio", driven.asked_ratios())


@of(metrics.REFUSALS)
def each_refusal_counts_by_its_reason(driven: Driven) -> None:
    risen = {
        dict(labels)["reason"]: value for labels, value in driven.rises("trimvit_refusals_total").items()
    }
    refused = {slug: count for (slug, _), count in driven.refusals.items()}
    assert risen == {**refused, "not-found": 1, "method-not-allowed": 1}


@of(metrics.APPLIED_KEEP_RATIO)
def a_ratio_that_is_applied_is_the_answers(driven: Driven) -> None:
    driven.histogram("trimvit_applied_keep_ratio", [result["keep_ratio"] for result in driven.results])


@of(metrics.PATCHES_KEPT)
def patches_kept_are_the_answers(driven: Driven) -> None:
    assert driven.rise("trimvit_patches_kept_total") == sum(one["patches"]["kept"] for one in driven.results)


@of(metrics.PATCHES_PRUNED)
def patches_pruned_are_the_rest(driven: Driven) -> None:
    assert driven.rise("trimvit_patches_pruned_total") == sum(
        one["patches"]["total"] - one["patches"]["kept"] for one in driven.results
    )


@of(metrics.COMPUTE_UNPRUNED)
def unpruned_compute_is_every_images(driven: Driven) -> None:
    expected = len(driven.answers) * driven.unpruned_macs
    assert driven.rise("trimvit_compute_unpruned_macs_total") == pytest.approx(expected)


@of(metrics.COMPUTE_SAVED)
def compute_saved_is_what_first_runs_cost_less(driven: Driven) -> None:
    arch, stages = driven.network.model.arch, driven.network.model.stages
    cheap = compute(arch, stages, FIRST.keep_ratio, FIRST.reducer)
    first_runs = [cheap if one["runs"] == 2 else one["compute"] for one in driven.results]
    saved = driven.unpruned_macs * sum(1 - share for share in first_runs)
    assert driven.rise("trimvit_compute_saved_macs_total") == pytest.approx(saved, rel=1e-5)


@of(metrics.COMPUTE_SECOND_RUNS)
def compute_of_second_runs_is_counted_apart(driven: Driven) -> None:
    share = second_run_compute(driven.network.model.arch, driven.network.model.stages)
    expected = 2 * share * driven.unpruned_macs
    assert driven.rise("trimvit_compute_second_runs_macs_total") == pytest.approx(expected)


@of(metrics.SECOND_RUNS)
def second_runs_are_the_answers(driven: Driven) -> None:
    assert driven.rise("trimvit_second_runs_total") == sum(one["runs"] == 2 for one in driven.results) == 2


@of(metrics.BATCHES)
def images_one_after_the_other_are_dense_batches(driven: Driven) -> None:
    assert driven.rises("trimvit_batches_total") == {frozenset({("form", "dense")}): len(driven.answers)}


@of(metrics.BATCH_IMAGES)
def images_one_after_the_other_are_batches_of_one(driven: Driven) -> None:
    driven.histogram("trimvit_batch_images", [1] * len(driven.answers))


@of(metrics.BATCH_TOKENS)
def a_batch_weighs_what_its_image_was_foreseen_to_cost(driven: Driven) -> None:
    driven.histogram("trimvit_batch_tokens", driven.weights())


@of(metrics.BATCH_FILL)
def fill_is_the_share_of_the_token_budget(driven: Driven) -> None:
    driven.histogram("trimvit_batch_fill", [weight / MAX_BATCH_TOKENS for weight in driven.weights()])


@of(metrics.BATCH_SECONDS)
def a_batch_of_one_takes_its_images_compute(driven: Driven) -> None:
    driven.histogram("trimvit_batch_seconds", driven.seconds_told("compute"), rel=1e-3)


@of(metrics.MODEL_BATCH_SECONDS)
def a_batch_of_one_is_a_batch_of_its_model(driven: Driven) -> None:
    labels = {"model": driven.model, "images": "1"}
    for sample in ("count", "sum"):
        alone = driven.rise(f"trimvit_model_batch_seconds_{sample}", **labels)
        assert alone == pytest.approx(sum(driven.rises(f"trimvit_batch_seconds_{sample}").values()), rel=1e-6)


@of(metrics.AGREEMENT_CHECKS)
def every_pruned_image_is_run_again_unpruned(driven: Driven) -> None:
    risen = {
        (dict(found)["ratio_bucket"], dict(found)["outcome"]): value
        for found, value in driven.rises("trimvit_agreement_checks_total").items()
    }
    assert risen == driven.expected_checks()
    assert {outcome for _, outcome in risen} == {"agreed", "disagreed"}, "or the check above could not fail"


@of(metrics.PREDICTION_ERROR)
def every_batch_was_predicted(driven: Driven) -> None:
    assert driven.rise("trimvit_batch_prediction_error_count") == len(driven.answers)
    assert 0 < driven.rise("trimvit_batch_prediction_error_sum") < math.inf


@of(metrics.IMAGES_SENT_AGAIN)
def no_image_was_sent_again(driven: Driven) -> None:
    assert total(driven.after, "trimvit_images_sent_again_total") == 0  # what raises it: test_faults.py


@of(metrics.DECODERS_REPLACED)
def a_decoder_that_dies_is_replaced_and_counted(driven: Driven) -> None:
    name, fronts = "trimvit_decoders_replaced_total", driven.server.processes("trimvit: http")
    assert total(driven.after, name) == 0
    for front in fronts:
        next(child for child in front.children() if "decode" in " ".join(child.cmdline())).kill()

    def replaced() -> bool:
        httpx.get(f"{driven.server.url}/readyz")  # a probe, which has them looked at
        return total(driven.server.samples(), name) == len(fronts)

    wait_until(replaced, "the decoders to be replaced")


@of(metrics.INCIDENTS)
def nothing_failed_in_the_background(driven: Driven) -> None:
    assert total(driven.after, "trimvit_incidents_total") == 0  # what raises it: test_incidents.py


@of(metrics.IMAGES_FAILED)
def no_image_failed_alone(driven: Driven) -> None:
    assert (
        total(driven.after, "trimvit_images_failed_total") == 0
    )  # what raises it: tests/app/worker/test_worker.py


@of(metrics.OUT_OF_MEMORY)
def memory_sufficed(driven: Driven) -> None:
    assert total(driven.after, "trimvit_out_of_memory_total") == 0  # what raises it: test_dispatcher.py


@of(metrics.LOWERED)
def nobody_was_lowered_who_did_not_allow_it(driven: Driven) -> None:
    reasons = {labels["reason"]: value for labels, value in labelled(driven.after, "trimvit_lowered_total")}
    assert reasons == {"brown-out": 0, "deadline": 0}  # what raises them: test_brown_out.py
    assert {result["lowered"] for result in driven.results} == {None}


@of(metrics.BROWN_OUT)
def without_load_there_is_no_brown_out(driven: Driven) -> None:
    assert driven.server.metric("trimvit_brown_out_ratio") == 1


@of(metrics.QUEUE_SECONDS)
def what_waits_is_predicted_to_take_time(driven: Driven) -> None:
    def waiting_s() -> float:
        return driven.server.metric("trimvit_queue_seconds")

    with under_load(driven.server):
        wait_until(lambda: waiting_s() > 0, "work to wait")
    wait_until(lambda: waiting_s() == 0, "the queue to be empty")


@of(metrics.QUEUE_LIMIT)
def the_limit_is_the_setting(driven: Driven) -> None:
    assert driven.server.metric("trimvit_queue_limit_images") == MAX_QUEUE_IMAGES


@of(metrics.QUEUE_IMAGES)
def images_wait_under_load_and_none_after_it(driven: Driven) -> None:
    arch = driven.network.model.arch
    weight = arch.patches + arch.prefix_tokens  # of an unpruned image

    def waiting() -> tuple[float, float]:
        page = driven.server.samples()
        return page["trimvit_queue_images", frozenset()], page["trimvit_queue_tokens", frozenset()]

    def some_wait() -> bool:
        images, tokens = waiting()
        return images > 1 and tokens == images * weight

    with under_load(driven.server):
        wait_until(some_wait, "images to wait")
    wait_until(lambda: waiting() == (0, 0), "the queue to be empty")


@of(metrics.QUEUE_TOKENS)
def tokens_wait_under_load(driven: Driven) -> None:
    images_wait_under_load_and_none_after_it(driven)


@of(metrics.DEVICE_MEMORY)
def memory_is_the_workers_own(driven: Driven) -> None:
    (worker,) = driven.server.processes("trimvit: worker")
    told = driven.server.metric("trimvit_device_memory_bytes", worker="worker-0")
    assert told == pytest.approx(worker.memory_info().rss, rel=0.2)


@of(metrics.WORKER_UP)
def a_worker_that_runs_is_up(driven: Driven) -> None:
    assert [value for key, value in driven.after.items() if key[0] == "trimvit_worker_up"] == [1]


@of(metrics.RESTARTS)
def a_process_that_dies_is_counted_and_no_counter_falls(driven: Driven) -> None:
    def restarts() -> dict[str, float]:
        page = driven.server.samples()
        return {dict(key[1])["process"]: value for key, value in page.items() if key[0] == name}

    name = "trimvit_restarts_total"
    none = {"dispatcher": 0, "worker-0": 0, "http-0": 0, "http-1": 0}
    assert restarts() == none
    before = settled(driven.server)
    kill(driven.server, "trimvit: http 1")
    wait_until(lambda: restarts() == none | {"http-1": 1}, "the restart to be counted")
    after = settled(driven.server)
    assert {key for key, value in counted(before).items() if after.get(key, 0) < value} == set()


@pytest.mark.parametrize(
    "name", [metric._name for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]
)
def test_a_metric_says_what_clients_saw(driven: Driven, name: str) -> None:
    """Every metric has a check here, and its value is what the server's clients can vouch for."""
    assert name in CHECKS, f"this file has no check of {name}"
    CHECKS[name](driven)


def small_picture() -> bytes:
    """An image that is quicker to decode than to compute."""
    small = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 100, 50)).save(small, "PNG")
    return small.getvalue()


@contextmanager
def under_load(server: Server) -> Iterator[None]:
    """Requests of many images from several clients, until the block ends; all are answered."""
    files = [("image", small_picture())] * 64
    ended = threading.Event()

    def client() -> int:
        with httpx.Client(timeout=60) as link:
            while not ended.is_set():
                link.post(f"{server.url}{ROUTE}", files=files).raise_for_status()
        return 0

    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(client) for _ in range(6)]
        try:
            yield
        finally:
            ended.set()
            for one in clients:
                one.result()


def test_all_images_of_a_request_are_counted(driven: Driven) -> None:
    """A request with three images is one request, three images, and three of each phase."""
    before = settled(driven.server)
    files = [("image", photograph) for photograph in PHOTOGRAPHS[:3]]
    httpx.post(driven.server.url + ROUTE, files=files, params={"keep_ratio": 0.5}).raise_for_status()
    rise = Driven(driven.server, driven.network, before, settled(driven.server)).rise
    assert rise("trimvit_requests_total", route=ROUTE, method="POST", status="200") == 1
    assert rise("trimvit_images_total", outcome="answered") == 3
    assert [rise("trimvit_phase_seconds_count", phase=phase) for phase in PHASES] == [3] * 4
    assert rise("trimvit_requested_keep_ratio_sum") == rise("trimvit_applied_keep_ratio_sum") == 1.5
    assert rise("trimvit_batch_images_sum") == 3


def test_any_process_answers_for_all(driven: Driven) -> None:
    """Both HTTP processes had a part in the counts above, and each tells the same."""
    lines = [json.loads(line) for line in driven.server.log.read_text().splitlines()]
    assert {"http 0", "http 1"} <= {line["process"] for line in lines if line.get("route") == ROUTE}
    pages = [counted(driven.server.samples()) for _ in range(12)]
    assert all(page == pages[0] for page in pages)


@needs_prometheus
def test_promtool_finds_nothing_to_mend_on_the_page(driven: Driven) -> None:
    """`promtool check metrics` is silent about a live page."""
    page = httpx.get(f"{driven.server.url}/metrics").content
    check = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, timeout=60)
    assert check.returncode == 0, check.stdout + check.stderr
    assert check.stdout + check.stderr == b""


@needs_prometheus
def test_no_alert_sees_a_fault_where_there_was_none(
    driven: Driven, alerts: dict[str, str], tmp_path: Path
) -> None:
    """Also to a Prometheus that has known the server for a moment: a series that is new is no fault."""
    with running_prometheus(tmp_path, driven.server.url) as prometheus:
        wait_until(lambda: prometheus.query('rate(up{job="trimvit"}[1m])') != [], "two scrapes")
        assert [name for name, expression in alerts.items() if prometheus.query(expression)] == []


@needs_prometheus
def test_every_panel_of_the_dashboard_has_data(
    driven: Driven, dashboard: dict[str, Any], tmp_path: Path
) -> None:
    """After load, Prometheus has an answer, and a number, to each of the dashboard's queries, with the labels
    of its legend."""
    queries = list(dashboard_queries(dashboard))
    assert len(queries) > 40

    def unanswered() -> list[str]:
        return [f"{where}: {query}" for where, query, legend in queries if not answered(query, legend)]

    def answered(query: str, legend: str) -> bool:
        names = set(re.findall(r"{{(\w+)}}", legend))
        return any(
            names <= set(series["metric"]) and math.isfinite(float(series["value"][1]))
            for series in prometheus.query(query)
        )

    def all_answered_under_load() -> bool:
        driven.ask_everything()
        return not unanswered()

    with running_prometheus(tmp_path, driven.server.url) as prometheus:
        wait_until(lambda: prometheus.query('up{job="trimvit"} == 1') != [], "a scrape")
        kill(driven.server, "trimvit: http 0")
        try:
            wait_until(all_answered_under_load, "all panels to have data")
        except pytest.fail.Exception:
            pytest.fail("no data for:\n" + "\n".join(unanswered()))


def test_a_worker_that_has_died_holds_nothing(driven: Driven) -> None:
    """Until its successor has loaded, a dead worker's memory does not stand. The last test here: it ends the
    server's service."""
    memory = frozenset({("worker", "worker-0")})
    assert driven.server.samples()["trimvit_device_memory_bytes", memory] > 0
    kill(driven.server, "trimvit: worker")
    wait_until(
        lambda: driven.server.samples()["trimvit_device_memory_bytes", memory] == 0, "the death to show"
    )


def kill(server: Server, title: str) -> None:
    """kill -9 of a process, once it is there; returns when it has ended."""
    wait_until(lambda: len(server.processes(title)) == 1, f"{title} to run")
    (process,) = server.processes(title)
    process.kill()
    process.wait(60)
