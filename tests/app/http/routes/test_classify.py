"""POST /v1/classify: answers, masks, what reaches the dispatcher, and what happens when it fails."""

import asyncio
import base64
import io
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from app.decoding.images import ImageLimits, decode
from app.decoding.pool import InExecutor
from app.errors import DeadlinePassed, InternalFault, NotReady, Problem, QueueFull, WorkerLost
from app.http.schemas import ClassifyResponse
from app.main import create_app
from app.settings.settings import Settings
from app.telemetry import logs
from models.cascade import second_run_compute
from models.offered import OF_ANY_MODEL, REDUCERS_OF_ANY_MODEL
from models.schedule import CRITERIA, REDUCERS, Method, Pruning, Reducer, compute, keep_ratio_for
from tests.app.fakes import MODEL, FakeDispatch, encoded, kept_patches
from tests.app.http.conftest import Classify
from tests.app.http.problem import assert_problem

ARCH, STAGES = MODEL.architecture, MODEL.method.stages


def result_of(response: httpx.Response) -> dict[str, object]:
    """The one result of a sound answer, checked against the published schema."""
    assert response.status_code == 200, response.text
    ClassifyResponse.model_validate_json(response.content, strict=True)
    (result,) = response.json()["results"]
    return result


# The answer.


def test_an_answer_says_labels_ratio_patches_and_compute(classify: Classify) -> None:
    """Everything that came out is in the answer, under the names of the published schema."""
    response = classify(params={"keep_ratio": 0.5, "top_k": 2})
    assert result_of(response) == {
        "labels": [
            {"index": 0, "label": "label 0", "score": 0.5},
            {"index": 1, "label": "label 1", "score": 0.25},
        ],
        "keep_ratio": 0.5,
        "requested_keep_ratio": 0.5,
        "lowered": None,
        "criterion": "mean",
        "reducer": "drop",
        "patches": {"total": 15, "kept": 4, "per_stage": [8, 4], "grid": [3, 5]},
        "compute": round(compute(ARCH, STAGES, 0.5), 6),
        "runs": 1,
    }
    assert response.headers["Content-Type"] == "application/json"
    assert response.json()["model"] == "toy"


def test_timings_are_in_the_body_and_the_same_in_server_timing(classify: Classify) -> None:
    """Server-Timing names every phase of timings_ms with its value, as the dispatcher tells them."""
    response = classify()
    timings = response.json()["timings_ms"]
    assert list(timings) == ["decode", "queue", "compute", "total"]
    assert (timings["queue"], timings["compute"]) == (3.0, 7.0)
    assert 0 < timings["decode"] <= timings["total"]
    assert response.headers["Server-Timing"] == ", ".join(
        f"{phase};dur={duration:.3f}" for phase, duration in timings.items()
    )


def test_the_answer_to_several_images_is_in_their_order(classify: Classify, dispatch: FakeDispatch) -> None:
    """Each file's pixels reach the dispatcher, and its result stands at its place."""
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    files = [("image", encoded(Image.new("RGB", (40, 24), colour))) for colour in colours]
    response = classify(files=files, data={"options": '[{"top_k": 1}, {"top_k": 2}, {"top_k": 3}]'})
    assert response.status_code == 200, response.text
    ClassifyResponse.model_validate_json(response.content, strict=True)
    assert [len(result["labels"]) for result in response.json()["results"]] == [1, 2, 3]
    by_top_k = {question.ask.top_k: question for question in dispatch.questions}
    assert [tuple(by_top_k[place + 1].pixels[0, 0]) for place in range(3)] == colours


def test_the_dispatcher_gets_the_pixels_that_the_model_sees(
    classify: Classify, dispatch: FakeDispatch
) -> None:
    """What is asked of the dispatcher is the decoded, cropped and resized image."""
    classify()
    (question,) = dispatch.questions
    assert np.array_equal(question.pixels, decode(encoded(), MODEL.input, ImageLimits(10**6)).pixels)


# Options.


def test_an_image_that_asks_for_nothing_gets_the_servers_defaults(
    make_client: Callable[..., TestClient], dispatch: FakeDispatch
) -> None:
    """Ratio, criterion, reducer and deadline come from the settings; nothing is asked that costs extra."""
    client = make_client(
        default_keep_ratio=0.8, default_criterion="mad", default_reducer="fuse", default_deadline_ms=5000
    )
    result = result_of(client.post("/v1/classify", content=encoded()))  # type: ignore[arg-type]
    (question,) = dispatch.questions
    assert question.ask.pruning == Pruning(0.8, "mad", "fuse", seed=0)
    assert question.ask.margin is None
    assert 0 < question.deadline_s < 5.0, "the time to decode is taken off"
    assert question.ask.kept_patches is False
    assert question.ask.top_k == 5
    assert (result["keep_ratio"], result["criterion"], result["reducer"]) == (0.8, "mad", "fuse")


def test_where_the_settings_say_nothing_the_checkpoints_method_is_the_default(
    classify: Classify, dispatch: FakeDispatch
) -> None:
    """A checkpoint is pruned as it was trained; what a request names itself goes before it."""
    dispatch.model = msgspec.structs.replace(MODEL, method=Method(STAGES, "iqr", "fuse"))
    for params in ({}, {"criterion": "mad"}, {"reducer": "merge"}):
        classify(params={"keep_ratio": 0.5, **params})
    assert [question.ask.pruning for question in dispatch.questions] == [
        Pruning(0.5, "iqr", "fuse"),
        Pruning(0.5, "mad", "fuse"),
        Pruning(0.5, "iqr", "merge"),
    ]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_can_be_asked_for(classify: Classify, dispatch: FakeDispatch, criterion: str) -> None:
    """The criterion reaches the dispatcher and comes back in the answer."""
    result = result_of(classify(params={"criterion": criterion}))
    assert dispatch.questions[0].ask.pruning.criterion == result["criterion"] == criterion


def test_a_criterion_that_the_model_has_not_is_refused(classify: Classify, dispatch: FakeDispatch) -> None:
    """By name, with what it would need and what is allowed; also at ratio 1."""
    dispatch.model = msgspec.structs.replace(MODEL, criteria=OF_ANY_MODEL)
    for ratio in (0.5, 1):
        response = classify(params={"criterion": "life", "keep_ratio": ratio})
        words = ("the criterion life needs a life predictor", "allowed are variance, mad, ")
        assert_problem(response, 422, "invalid-value", *words, image=0)
    assert result_of(classify(params={"criterion": "mad"}))["criterion"] == "mad"


@pytest.mark.parametrize("reducer", REDUCERS)
def test_every_reducer_can_be_asked_for(classify: Classify, dispatch: FakeDispatch, reducer: str) -> None:
    """The reducer reaches the dispatcher and comes back, with the criterion where it reads one."""
    result = result_of(classify(params={"reducer": reducer, "criterion": "mad", "keep_ratio": 0.5}))
    assert dispatch.questions[0].ask.pruning.reducer == result["reducer"] == reducer
    assert result["criterion"] == (None if reducer in ("merge", "pool") else "mad")


@pytest.mark.parametrize("share", [0.1, 0.75, 1.0])
def test_keep_mass_stands_in_place_of_a_ratio_and_the_answer_says_what_it_came_to(
    make_client: Callable[..., TestClient], dispatch: FakeDispatch, metric: Callable[..., float], share: float
) -> None:
    """Whatever the server's default ratio is; no ratio counts as asked for."""
    client = make_client(default_keep_ratio=0.5)
    before = metric("trimvit_requested_keep_ratio_count")
    params = {"keep_mass": share, "reducer": "fuse", "criterion": "mad"}
    result = result_of(client.post("/v1/classify", content=encoded(), params=params))  # type: ignore[arg-type]
    assert dispatch.questions[0].ask.pruning == Pruning(1.0, "mad", "fuse", keep_mass=share)
    assert result["keep_ratio"] == math.ceil(15 * share) / 15
    assert metric("trimvit_requested_keep_ratio_count") == before


def test_a_reducer_that_the_model_has_not_is_refused(classify: Classify, dispatch: FakeDispatch) -> None:
    """By name, with what it would need and what is allowed; also at ratio 1."""
    dispatch.model = msgspec.structs.replace(MODEL, reducers=REDUCERS_OF_ANY_MODEL)
    for ratio in (0.5, 1):
        response = classify(params={"reducer": "pool", "keep_ratio": ratio})
        words = ("the reducer pool needs learned queries", "allowed are drop, fuse, merge, transform")
        assert_problem(response, 422, "invalid-value", *words, image=0)
    assert result_of(classify(params={"reducer": "merge"}))["reducer"] == "merge"


def test_what_is_pooled_has_no_mask(classify: Classify, dispatch: FakeDispatch) -> None:
    """Its tokens are no patches: refused in words, by itself, where the ratio may be lowered, and in a
    cascade; an image that is left whole has one."""
    pooled = {"reducer": "pool", "mask": "indices"}
    words = (
        "a mask shows which patches are kept, but the reducer pool keeps none",
        "drop, fuse, merge or transform",
    )
    lowered: list[dict[str, Any]] = [
        {"keep_ratio": 0.5},
        {"keep_ratio": "auto", "deadline_ms": 60_000},
        {"keep_ratio": 1, "min_keep_ratio": 0.5},
    ]
    for params in lowered:
        assert_problem(classify(params=pooled | params), 422, "invalid-value", *words, image=0)
    assert result_of(classify(params=pooled | {"keep_ratio": 1}))["mask"]
    assert result_of(classify(params={"reducer": "pool", "keep_ratio": 0.5}))["reducer"] == "pool"
    assert MODEL.cascade is not None
    cascade = replace(MODEL.cascade, reducer="pool")
    dispatch.model = msgspec.structs.replace(MODEL, cascade=cascade)
    response = classify(params={"cascade": True, "mask": "grid"})
    assert_problem(response, 422, "invalid-value", *words, image=0)


def test_what_is_transformed_has_a_mask_and_goes_by_mass(classify: Classify, dispatch: FakeDispatch) -> None:
    """Of the patches that its tokens start from; every model has the reducer."""
    dispatch.model = msgspec.structs.replace(MODEL, reducers=REDUCERS_OF_ANY_MODEL)
    result = result_of(classify(params={"reducer": "transform", "keep_mass": 0.5, "mask": "indices"}))
    assert (result["reducer"], result["criterion"]) == ("transform", MODEL.method.criterion)
    assert len(result["mask"][0]["indices"]) == result["patches"]["kept"] > 0


def test_keep_mass_with_the_reducer_merge_is_refused(
    make_client: Callable[..., TestClient], dispatch: FakeDispatch
) -> None:
    """Merging goes by likeness, not by importance: asked for, or the server's default."""
    for settings, params in (({}, {"reducer": "merge"}), ({"default_reducer": "merge"}, {})):
        response = make_client(**settings).post(
            "/v1/classify", content=encoded(), params={"keep_mass": 0.8, **params}
        )
        assert_problem(
            response, 422, "invalid-value", "keep_mass", "merge", "drop, fuse or transform", image=0
        )  # type: ignore[arg-type]
    assert dispatch.questions == []


def test_keep_mass_is_refused_where_every_stage_loses_as_many(
    classify: Classify, dispatch: FakeDispatch
) -> None:
    """With what is allowed; a ratio or a compute is served."""
    stages = replace(STAGES, evenly=True)
    dispatch.model = msgspec.structs.replace(MODEL, method=replace(MODEL.method, stages=stages))
    refused = classify(params={"keep_mass": 0.8})
    assert_problem(refused, 422, "invalid-value", "keep_mass", "keep_ratio or compute", image=0)
    assert dispatch.questions == []
    assert classify(params={"keep_ratio": 0.8}).status_code == 200


@pytest.mark.parametrize("unsure", [False, True])
def test_a_cascade_runs_as_it_was_calibrated(
    make_client: Callable[..., TestClient], dispatch: FakeDispatch, metric: Callable[..., float], unsure: bool
) -> None:
    """Ratio, criterion, reducer and margin are the checkpoint's, whatever the settings say; the answer names
    runs, applied ratio and the cost of all runs."""
    dispatch.unsure = unsure
    client = make_client(default_keep_ratio=0.9, default_criterion="mad", default_reducer="merge")
    before = metric("trimvit_requested_keep_ratio_count")
    result = result_of(client.post("/v1/classify", content=encoded(), params={"cascade": "true"}))  # type: ignore[arg-type]
    (question,) = dispatch.questions
    assert (question.ask.pruning, question.ask.margin) == (Pruning(0.5, "iqr", "fuse"), 0.375)
    assert metric("trimvit_requested_keep_ratio_count") == before
    first = compute(ARCH, STAGES, 0.5, "fuse")
    assert (result["criterion"], result["reducer"]) == ("iqr", "fuse")
    if unsure:
        assert (result["runs"], result["keep_ratio"]) == (2, 1.0)
        assert result["patches"]["per_stage"] == [15, 15]  # type: ignore[index]
        assert result["compute"] == round(first + second_run_compute(ARCH, STAGES), 6) > 1
    else:
        assert (result["runs"], result["keep_ratio"]) == (1, 0.5)
        assert result["compute"] == round(first, 6)


def test_a_cascade_that_the_checkpoint_has_not_is_refused(classify: Classify, dispatch: FakeDispatch) -> None:
    """The text says how to get one, and what can be asked for meanwhile; cascade=false is no question."""
    dispatch.model = msgspec.structs.replace(MODEL, cascade=None)
    words = ["no cascade", "`trimvit calibrate`", "keep_ratio, compute or keep_mass"]
    assert_problem(classify(params={"cascade": "true"}), 422, "invalid-value", *words, image=0)
    assert dispatch.questions == []
    assert classify(params={"cascade": "false"}).status_code == 200


def test_seed_and_deadline_reach_the_dispatcher(classify: Classify, dispatch: FakeDispatch) -> None:
    """The seed as it is; the deadline less the time that decoding took."""
    classify(params={"seed": 17, "deadline_ms": 1234})
    (question,) = dispatch.questions
    assert question.ask.pruning.seed == 17
    assert 0 < question.deadline_s < 1.234


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("share", [0.5, 0.75, 1])
def test_compute_is_turned_into_the_largest_keep_ratio_that_fits(
    classify: Classify, dispatch: FakeDispatch, share: float, reducer: Reducer
) -> None:
    """A request may say what an image is to cost with its reducer; the answer says what it did."""
    result = result_of(classify(params={"compute": share, "reducer": reducer}))
    ratio = keep_ratio_for(ARCH, STAGES, share, reducer)
    assert dispatch.questions[0].ask.pruning.keep_ratio == result["keep_ratio"] == ratio
    assert isinstance(result["compute"], float)
    assert result["compute"] <= share


def test_a_compute_that_no_ratio_reaches_is_refused(classify: Classify) -> None:
    """Less than one patch a stage cannot be had, and the text says what that costs."""
    lowest = compute(ARCH, STAGES, 0.0001)
    assert_problem(
        classify(params={"compute": 0.01}),
        422,
        "invalid-value",
        "compute 0.01 is too low",
        f"{lowest:.3f}",
        image=0,
    )


def test_more_labels_than_there_are_gives_all(classify: Classify) -> None:
    """top_k above the number of classes is no mistake."""
    labels = result_of(classify(params={"top_k": 1000}))["labels"]
    assert isinstance(labels, list)
    assert [label["index"] for label in labels] == list(range(11))


# Masks.


def masks_of(response: httpx.Response) -> list[dict[str, object]]:
    mask = result_of(response)["mask"]
    assert isinstance(mask, list)
    return mask


@pytest.mark.parametrize("mask", [None, "none"])
def test_no_mask_unless_it_is_asked_for(classify: Classify, dispatch: FakeDispatch, mask: str | None) -> None:
    """Without a mask the answer has none, and the dispatcher is not asked for indices."""
    result = result_of(classify(params={"mask": mask} if mask else {}))
    assert "mask" not in result
    assert not dispatch.questions[0].ask.kept_patches


def test_a_mask_of_indices_names_the_kept_patches_after_the_last_stage(classify: Classify) -> None:
    """Blocks are counted from 1, patches from 0, row by row."""
    masks = masks_of(classify(params={"mask": "indices", "keep_ratio": 0.5}))
    assert masks == [{"block": 4, "indices": [11, 12, 13, 14]}]


def test_mask_stages_gives_the_mask_after_every_stage(classify: Classify) -> None:
    """One entry a stage, in order."""
    masks = masks_of(classify(params={"mask": "indices", "mask_stages": "true", "keep_ratio": 0.5}))
    assert masks == [
        {"block": 2, "indices": list(range(7, 15))},
        {"block": 4, "indices": list(range(11, 15))},
    ]


def test_a_mask_as_grid_has_the_patches_rows_and_columns(classify: Classify) -> None:
    """1 is kept and 0 is not, in three rows of five."""
    masks = masks_of(classify(params={"mask": "grid", "mask_stages": "true", "keep_ratio": 0.5}))
    assert masks == [
        {"block": 2, "grid": [[0, 0, 0, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]},
        {"block": 4, "grid": [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1]]},
    ]


def test_a_mask_as_png_dims_what_was_pruned(classify: Classify) -> None:
    """Kept patches are the pixels the model saw, to the bit; pruned ones have a quarter of the brightness."""
    masks = masks_of(classify(params={"mask": "png", "mask_stages": "true", "keep_ratio": 0.5}))
    seen = decode(encoded(), MODEL.input, ImageLimits(10**6)).pixels
    assert [mask["block"] for mask in masks] == [2, 4]
    for mask, kept in zip(masks, kept_patches(0.5), strict=True):
        png = base64.b64decode(str(mask["png"]), validate=True)
        shown = np.asarray(Image.open(io.BytesIO(png), formats=["PNG"]))
        assert shown.shape == (21, 35, 3)
        for patch in range(15):
            rows = slice(patch // 5 * 7, patch // 5 * 7 + 7)
            columns = slice(patch % 5 * 7, patch % 5 * 7 + 7)
            expected = seen[rows, columns] if patch in kept else seen[rows, columns] // 4
            assert np.array_equal(shown[rows, columns], expected), patch


def test_each_image_has_the_mask_it_asked_for(classify: Classify) -> None:
    """Images of one request may want different masks, or none."""
    image = base64.b64encode(encoded()).decode()
    masks = ["indices", "none", "grid"]
    response = classify(json={"images": [{"image": image, "mask": mask} for mask in masks]})
    results = response.json()["results"]
    assert ["mask" in result for result in results] == [True, False, True]
    assert "indices" in results[0]["mask"][0]
    assert "grid" in results[2]["mask"][0]


# What the dispatcher refuses.


@pytest.mark.parametrize(
    ("problem", "status", "retry_after"),
    [
        (QueueFull("the queue is full", retry_after_s=1.2), 429, "2"),
        (NotReady("no worker is ready", retry_after_s=0.1), 503, "1"),
        (WorkerLost("2 workers died while computing this image"), 500, None),
        (DeadlinePassed("no answer within the deadline of 50 ms"), 504, None),
        (InternalFault("the worker failed on the batch with this image"), 500, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Problem) else "",
)
def test_what_the_dispatcher_raises_is_the_answer(
    classify: Classify, dispatch: FakeDispatch, problem: Problem, status: int, retry_after: str | None
) -> None:
    """The dispatcher's problems have their status, their words, and a time to come back if there is one."""
    dispatch.fails = problem
    response = classify()
    assert_problem(response, status, problem.slug, problem.detail, image=0)
    assert response.headers.get("Retry-After") == retry_after


def test_before_a_worker_is_ready_images_are_refused(classify: Classify, dispatch: FakeDispatch) -> None:
    """503 with a time to come back, and nothing is decoded for nobody."""
    dispatch.model = None
    response = classify()
    assert_problem(response, 503, "not-ready", "no worker became ready in time")
    assert response.headers["Retry-After"] == "1"
    assert dispatch.questions == []


def test_a_request_waits_for_a_worker_as_long_as_its_shortest_deadline(
    classify: Classify, dispatch: FakeDispatch
) -> None:
    """Of several images the most urgent one says how long; without a deadline it is the default one."""
    photograph = base64.b64encode(encoded()).decode()
    images = [{"image": photograph, "deadline_ms": 9000}, {"image": photograph, "deadline_ms": 7000}]
    dispatch.becomes = dispatch.model
    dispatch.model = None
    assert classify(json={"images": images}).status_code == 200
    dispatch.model = None
    assert classify().status_code == 200
    assert [math.ceil(waited_s) for waited_s in dispatch.waits_s] == [7, 30]


def test_the_time_waited_for_a_worker_counts_toward_the_deadline(
    classify: Classify, dispatch: FakeDispatch
) -> None:
    """The dispatcher is told the time that is left."""
    dispatch.becomes, dispatch.model, dispatch.ready_after_s = dispatch.model, None, 0.05
    assert classify(params={"deadline_ms": 9000}).status_code == 200
    assert dispatch.questions[0].deadline_s < 9.0 - 0.05


def test_a_deadline_that_decoding_takes_up_is_passed(dispatch: FakeDispatch) -> None:
    """Where decoding took longer than the image may take, the dispatcher is not asked."""

    class SlowDecoders(ThreadPoolExecutor):
        def submit(self, *work: Any) -> Future[Any]:  # type: ignore[override]
            super().submit(time.sleep, 1.1)
            return super().submit(*work)

    with SlowDecoders(1) as decoders:
        client = TestClient(create_app(Settings(), dispatch, InExecutor(decoders)))
        response = client.post("/v1/classify", content=encoded(), params={"deadline_ms": 1000})
    assert_problem(response, 504, "deadline-passed", "while the image was being decoded", image=0)
    assert dispatch.questions == []


def test_one_problem_answers_for_all_and_names_its_image(classify: Classify, dispatch: FakeDispatch) -> None:
    """All images are answered, or the first problem is, with the place of the image at fault."""
    files = [("image", encoded()), ("image", b"not an image"), ("image", encoded())]
    assert_problem(classify(files=files), 422, "undecodable-image", "not an image", image=1)


@pytest.mark.anyio
async def test_a_problem_withdraws_what_is_still_under_way(dispatch: FakeDispatch) -> None:
    """The images beside the one at fault are not computed for an answer that nobody gets."""
    dispatch.wait_for = asyncio.Event()
    files = [("image", encoded()), ("image", b"not an image"), ("image", encoded())]
    async with asgi_client(dispatch) as client:
        response = await client.post("/v1/classify", files=files)
    assert_problem(response, 422, "undecodable-image", image=1)
    assert dispatch.cancelled == len(dispatch.questions)


def test_an_unforeseen_fault_is_a_500_with_the_request_id_and_a_traceback_in_the_log(
    classify: Classify, dispatch: FakeDispatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug of ours is told with the id to look for, without its innards, which are in the log."""
    dispatch.fails = KeyError("secret innards")
    caplog.handler.setFormatter(logs._Text("http 0"))
    with caplog.at_level(logging.ERROR):
        response = classify(headers={"X-Request-ID": "trace-4711"})
    document = assert_problem(response, 500, "internal-fault", "trace-4711")
    assert "secret" not in document.detail
    assert response.headers["X-Request-ID"] == "trace-4711"
    assert "unhandled exception in a request [trace-4711]" in caplog.text
    assert "Traceback" in caplog.text
    assert "secret innards" in caplog.text


# Clients that go away.


def asgi_client(dispatch: FakeDispatch) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(Settings(), dispatch)), base_url="http://test"
    )


async def ask_and_go(dispatch: FakeDispatch, *, body_is_complete: bool) -> list[dict[str, object]]:
    """Send a request and go away: while the body is sent, or once a worker has the image. Gives back what
    the application sent."""
    app = create_app(Settings(), dispatch)
    sent: list[dict[str, object]] = []
    messages = [{"type": "http.request", "body": encoded(), "more_body": not body_is_complete}]

    async def receive() -> dict[str, object]:
        if messages:
            return messages.pop()
        while body_is_complete and not dispatch.questions:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        sent.append(dict(message))  # type: ignore[call-overload]

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/classify",
        "raw_path": b"/v1/classify",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"content-type", b"image/png")],
    }
    async with asyncio.timeout(30):
        await app(scope, receive, send)  # type: ignore[arg-type]
    return sent


@pytest.mark.anyio
async def test_where_the_client_goes_away_its_image_is_withdrawn(
    dispatch: FakeDispatch, metric: Callable[..., float]
) -> None:
    """A queue keeps no work whose client has gone; it is counted as such and nothing is sent."""
    dispatch.wait_for = asyncio.Event()
    counted = {"route": "/v1/classify", "method": "POST", "status": "499"}
    before = metric("trimvit_requests_total", **counted)
    images_before = metric("trimvit_images_total", outcome="client-gone")
    assert await ask_and_go(dispatch, body_is_complete=True) == []
    assert len(dispatch.questions) == dispatch.cancelled == 1
    assert metric("trimvit_requests_total", **counted) == before + 1
    assert metric("trimvit_images_total", outcome="client-gone") == images_before + 1


@pytest.mark.anyio
async def test_half_a_body_of_a_client_that_went_away_is_forgotten(
    dispatch: FakeDispatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An upload that breaks off asks nothing of the dispatcher and is no fault of the server."""
    assert await ask_and_go(dispatch, body_is_complete=False) == []
    assert dispatch.questions == []
    assert caplog.text == ""


def test_pixels_that_are_kept_for_a_picture_count_in_the_memory_of_all_bodies() -> None:
    """Those that a mask is drawn over; where they can never fit, the request is too large. Others are in
    their slot alone."""
    image = encoded(Image.new("RGB", (40, 30), (9, 80, 200)), "JPEG")
    height, width = MODEL.input.size
    pixels = height * width * 3
    for mask, spare, status in (("png", pixels, 200), ("png", pixels - 1, 413), ("grid", 0, 200)):
        # A half is for work on one body where that may be so large, see app.http.bodies.memory.most_held.
        settings = Settings(max_body_bytes=10**6, max_bodies_bytes=2 * (len(image) + spare))
        client = TestClient(create_app(settings, FakeDispatch()))
        response = client.post("/v1/classify", content=image, params={"mask": mask})
        assert response.status_code == status, response.text
