"""/invocations and /ping: the container as Amazon SageMaker runs one."""

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from app.http.routes.sagemaker import ATTRIBUTES, query_of
from models.schedule import Pruning
from tests.app.fakes import FakeDispatch, encoded
from tests.app.http.problem import assert_problem

ROOT = Path(__file__).parents[4]
SOUND = encoded()
BASE64 = base64.b64encode(SOUND).decode()


def scope_of(path: str, query: str, attributes: str | None) -> dict[str, Any]:
    headers = [] if attributes is None else [(ATTRIBUTES.lower().encode(), attributes.encode("latin-1"))]
    return {"type": "http", "path": path, "query_string": query.encode(), "headers": headers}


@pytest.mark.parametrize(
    "request_",
    [
        {"content": SOUND, "headers": {"Content-Type": "image/jpeg"}},
        {"content": SOUND, "headers": {"Content-Type": "application/x-image"}},
        {"content": SOUND},
        {"files": [("image", SOUND)]},
        {"json": {"image": BASE64}},
    ],
    ids=["image", "application/x-image", "no type", "form", "JSON"],
)
def test_an_invocation_is_answered_as_classify_is(client: TestClient, request_: dict[str, Any]) -> None:
    """By the same bodies, with the same answer; also by the type that SageMaker's own image models take."""
    answers = [client.post(path, **request_) for path in ("/invocations", "/v1/classify")]
    invoked, classified = [{**answer.json(), "timings_ms": None} for answer in answers]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert invoked == classified


def test_options_come_in_the_header_that_sagemaker_passes_on(
    client: TestClient, dispatch: FakeDispatch
) -> None:
    """Its clients can send no query; one that comes otherwise is read too."""
    response = client.post(
        "/invocations?top_k=2", content=SOUND, headers={ATTRIBUTES: "keep_ratio=0.5, criterion=mad;trace-7"}
    )
    assert response.status_code == 200, response.text
    (question,) = dispatch.questions
    assert (question.ask.pruning, question.ask.top_k) == (Pruning(0.5, "mad"), 2)


@pytest.mark.parametrize(
    "attributes",
    [
        '{"keep_ratio": 0.5, "criterion": "mad", "top_k": 2}',
        "{'keep_ratio':0.5,'criterion':'mad','top_k':2}",
        "keep_ratio: 0.5, criterion: mad, top_k: 2, a1b2:c3d4",
        " keep_ratio = 0.5 ; criterion = mad ; top_k = 2 ",
    ],
)
def test_options_are_read_however_they_are_written(
    client: TestClient, dispatch: FakeDispatch, attributes: str
) -> None:
    """The header has no form of its own, and an option in it is never taken for an ID."""
    response = client.post("/invocations", content=SOUND, headers={ATTRIBUTES: attributes})
    assert response.status_code == 200, response.text
    (question,) = dispatch.questions
    assert (question.ask.pruning, question.ask.top_k) == (Pruning(0.5, "mad"), 2)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ("keepRatio: 0.5", "did you mean keep_ratio"),
        ("keep_ratio=2", "keep_ratio"),
        ("keepratio=0.5", "did you mean keep_ratio"),
    ],
)
def test_a_wrong_option_in_the_header_is_refused_as_in_the_query(
    client: TestClient, attributes: str, words: str
) -> None:
    """In the same words."""
    response = client.post("/invocations", content=SOUND, headers={ATTRIBUTES: attributes})
    assert_problem(response, 422, "invalid-value", words, image=0)  # type: ignore[arg-type]


def test_the_header_is_read_on_invocations_only(client: TestClient, dispatch: FakeDispatch) -> None:
    """Elsewhere it is nobody's."""
    client.post("/v1/classify", content=SOUND, headers={ATTRIBUTES: "keep_ratio=0.5"})
    assert dispatch.questions[0].ask.pruning.keep_ratio == 1


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_any_header_makes_a_query(text: str) -> None:
    """Whatever comes, the request's own query stays at its head."""
    assert query_of(scope_of("/invocations", "top_k=2", text)).startswith(b"top_k=2")
    assert query_of(scope_of("/v1/classify", "top_k=2", text)) == b"top_k=2"


def test_ping_is_readiness(client: TestClient, dispatch: FakeDispatch) -> None:
    """200 once images are answered, 503 before, with the body of /readyz."""
    for model in (dispatch.model, None):
        dispatch.model = model
        ping, readyz = client.get("/ping"), client.get("/readyz")
        assert ping.status_code == readyz.status_code == (200 if model else 503)
        assert ping.json() == readyz.json()


def test_the_container_takes_sagemakers_command() -> None:
    """SageMaker runs `docker run IMAGE serve`: the entry point is the program, `serve` its argument."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert '\nENTRYPOINT ["trimvit"]\nCMD ["serve"]\n' in dockerfile


def test_all_headers_with_attributes_are_read() -> None:
    """A client may send one for each attribute, which HTTP takes for a list."""
    values = ("keep_ratio=0.5", "trace-7", "top_k=2")
    headers = [(ATTRIBUTES.lower().encode(), value.encode()) for value in values]
    scope = {"type": "http", "path": "/invocations", "query_string": b"", "headers": headers}
    assert query_of(scope) == b"keep_ratio=0.5&top_k=2"
