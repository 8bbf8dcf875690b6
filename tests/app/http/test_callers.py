"""Options of scheduling over HTTP: floors, auto, priorities, callers, and refusal before decoding."""

import math
from collections.abc import Callable

import httpx
import pytest
from starlette.testclient import TestClient

from app.dispatch.policy.brown_out import CEILINGS
from app.errors import DeadlineUnmeetable, QueueFull
from app.http.callers import caller_of
from models.schedule import Pruning, compute, keep_ratio_for
from tests.app.fakes import MODEL, FakeDispatch, encoded
from tests.app.http.problem import assert_problem

Classify = Callable[..., httpx.Response]
ARCH, STAGES = MODEL.architecture, MODEL.method.stages


def test_a_floor_reaches_the_dispatcher_and_the_answer_says_what_was_asked_and_applied(
    classify: Classify, dispatch: FakeDispatch
) -> None:
    """The dispatcher may lower the ratio to it; why it did comes back."""
    dispatch.lowers_to = 0.5
    (result,) = classify(params={"keep_ratio": 0.9, "min_keep_ratio": 0.4}).json()["results"]
    (question,) = dispatch.questions
    assert (question.ask.pruning, question.ask.min_keep_ratio) == (Pruning(0.9, "mean"), 0.4)
    assert (result["requested_keep_ratio"], result["keep_ratio"]) == (0.9, 0.5)
    assert result["lowered"] == "brown-out"


def test_without_a_floor_nothing_may_be_lowered(classify: Classify, dispatch: FakeDispatch) -> None:
    """The ratio is the one that was asked for, and the answer has no reason."""
    (result,) = classify(params={"keep_ratio": 0.9}).json()["results"]
    assert dispatch.questions[0].ask.min_keep_ratio is None
    assert (result["requested_keep_ratio"], result["keep_ratio"], result["lowered"]) == (0.9, 0.9, None)


def test_a_floor_below_the_ratio_that_a_compute_stands_for(
    classify: Classify, dispatch: FakeDispatch
) -> None:
    """A compute is a ratio in other words, and may be lowered like one."""
    (result,) = classify(params={"compute": 0.75, "min_keep_ratio": 0.1}).json()["results"]
    ratio = keep_ratio_for(ARCH, STAGES, 0.75)
    assert dispatch.questions[0].ask.min_keep_ratio == 0.1
    assert result["requested_keep_ratio"] == ratio


@pytest.mark.parametrize(("floor", "sent"), [(None, 0.3), (0.6, 0.6), (0.05, 0.05)])
def test_auto_asks_for_the_most_that_the_deadline_allows(
    classify: Classify,
    dispatch: FakeDispatch,
    metric: Callable[..., float],
    floor: float | None,
    sent: float,
) -> None:
    """It starts from the unpruned model and may go down to the floor; no ratio counts as asked."""
    before = metric("trimvit_requested_keep_ratio_count")
    params = {"keep_ratio": "auto", "deadline_ms": 5000, **({"min_keep_ratio": floor} if floor else {})}
    (result,) = classify(params=params).json()["results"]
    (question,) = dispatch.questions
    assert (question.ask.pruning.keep_ratio, question.ask.min_keep_ratio) == (1.0, sent)
    assert question.own_deadline
    assert result["requested_keep_ratio"] == "auto"
    assert metric("trimvit_requested_keep_ratio_count") == before


def test_with_several_ways_to_choose_null_was_requested(classify: Classify) -> None:
    """keep_mass and cascade choose by the image."""
    for params in ({"keep_mass": 0.8}, {"cascade": "true"}):
        (result,) = classify(params=params).json()["results"]
        assert result["requested_keep_ratio"] is None
        assert result["lowered"] is None


@pytest.mark.parametrize(
    ("params", "words", "image"),
    [
        ({"min_keep_ratio": 0}, ["min_keep_ratio must be a number above 0 and at most 1, such as 0.5"], 0),
        ({"min_keep_ratio": 1.5}, ["min_keep_ratio must be a number above 0 and at most 1, such as 0.5"], 0),
        (
            {"min_keep_ratio": 0.8, "keep_ratio": 0.5},
            ["min_keep_ratio is 0.8", "at most the keep ratio, which is 0.5"],
            0,
        ),
        (
            {"min_keep_ratio": 0.5, "keep_mass": 0.5},
            ["min_keep_ratio", "keep_mass", "leave one of them out"],
            0,
        ),
        (
            {"min_keep_ratio": 0.5, "cascade": "true"},
            ["min_keep_ratio", "cascade", "leave one of them out"],
            0,
        ),
        ({"keep_ratio": "auto"}, ["keep_ratio auto", "deadline_ms"], 0),
        (
            {"keep_ratio": "Auto", "deadline_ms": 9},
            ["keep_ratio must be a number", "or 'auto'", "got 'Auto'; did you mean 'auto'?"],
            0,
        ),
        ({"keep_ratio": "auto", "deadline_ms": 9, "compute": 0.5}, ["keep_ratio and compute"], 0),
        ({"priority": "urgent"}, ["priority must be 'high', 'normal' or 'batch'; got 'urgent'"], 0),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(
    classify: Classify, dispatch: FakeDispatch, params: dict[str, object], words: list[str], image: int
) -> None:
    """422 says what is wrong and what is allowed."""
    assert_problem(classify(params=params), 422, "invalid-value", *words, image=image)
    assert dispatch.questions == []


def test_a_floor_above_the_servers_default_ratio_is_refused(
    make_client: Callable[..., TestClient], dispatch: FakeDispatch
) -> None:
    """The default counts as asked for."""
    client = make_client(default_keep_ratio=0.5)
    response = client.post("/v1/classify", content=encoded(), params={"min_keep_ratio": 0.6})
    assert_problem(response, 422, "invalid-value", "0.6", "0.5", image=0)  # type: ignore[arg-type]
    assert dispatch.questions == []


@pytest.mark.parametrize("priority", ["high", "normal", "batch"])
def test_priority_and_caller_reach_the_dispatcher(
    make_client: Callable[..., TestClient], dispatch: FakeDispatch, priority: str
) -> None:
    """The caller is the client's address, unless somebody knows better."""
    client = make_client(max_priority="high")
    client.post("/v1/classify", content=encoded(), params={"priority": priority})
    (question,) = dispatch.questions
    assert (question.priority, question.caller) == (priority, "testclient")


def test_the_caller_is_the_name_of_a_key_where_there_is_one() -> None:
    """Addresses are shared by whoever sits behind one proxy; names are not."""
    client = ("192.0.2.7", 4711)
    named = {"state": {"caller": "billing"}, "client": client}
    unnamed = {"state": {}, "client": client}
    unknown = {"client": None}
    found = [caller_of(scope) for scope in (named, unnamed, unknown)]
    assert found == ["billing", "192.0.2.7", ""]


@pytest.mark.parametrize(
    "problem", [QueueFull("much waits", retry_after_s=3.2), DeadlineUnmeetable("too late")]
)
def test_what_would_be_refused_anyhow_is_not_decoded(
    classify: Classify, dispatch: FakeDispatch, problem: QueueFull | DeadlineUnmeetable
) -> None:
    """Bytes that are no image are not even looked at, and the dispatcher is not asked."""
    dispatch.refuses = problem
    response = classify(content=b"no image at all", params={"deadline_ms": 100})
    assert_problem(response, problem.status, problem.slug, problem.detail, image=0)
    assert response.headers.get("retry-after") == ("4" if problem.retry_after_s else None)
    assert dispatch.questions == []


def test_before_decoding_the_dispatcher_is_told_what_is_to_come(
    make_client: Callable[..., TestClient], dispatch: FakeDispatch
) -> None:
    """The least that the image will cost, and how long it may wait: its deadline, or the server's limit."""
    client = make_client(max_queue_s=7.5)
    for params in (
        {"keep_ratio": 0.5},
        {"keep_ratio": 0.9, "min_keep_ratio": 0.1, "deadline_ms": 20_000, "priority": "batch"},
    ):
        client.post("/v1/classify", content=encoded(), params=params)  # type: ignore[arg-type]
    first, second = dispatch.expected
    assert (first.share, first.wait_limit_s) == (compute(ARCH, STAGES, 0.5), 7.5)
    assert (second.share, second.wait_limit_s) == (compute(ARCH, STAGES, CEILINGS[-1]), math.inf)
    assert (second.priority, second.caller) == ("batch", "testclient")
    assert (first.deadline_s <= 30.0, second.deadline_s <= 20.0) == (True, True), "since the request came"
