"""A call's attempts, waits and answers, step by step on a clock of our own."""

from collections.abc import Callable

import httpx
import pytest
from trimvit_client import (
    ClientProblem,
    ConnectionFailed,
    Options,
    Problem,
    QueueFull,
    Retries,
    ServerProblem,
    TimedOut,
    TooLarge,
    TrimViTError,
    UnexpectedAnswer,
)
from trimvit_client.exchange import Attempt, Call, Rules, Wait, classify_call, exchange, failure_of, result_of

from app import errors as server_errors
from app.inference.options import ImageOptions
from tests.app.test_errors import PROBLEMS

ASK: Call[str] = Call("GET", "/hello", lambda answer: str(answer.json()["hello"]))


def answer(status: int = 200, document: object = None, **headers: str) -> httpx.Response:
    kind = "application/json" if status == 200 else "application/problem+json"
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    response = httpx.Response(
        status,
        json={"hello": "world"} if document is None else document,
        headers={"Content-Type": kind, **names},
    )
    response.request = httpx.Request("GET", "http://test/hello")
    return response


def problem(slug: str, status: int, **headers: str) -> httpx.Response:
    document = {"type": f"urn:trimvit:problem:{slug}", "title": "T", "status": status, "detail": "why"}
    return answer(status, document, **headers)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def play(
    call: Call[str],
    replies: list[Callable[[Clock], httpx.Response | TrimViTError]],
    deadline_s: float | None = None,
    **retries: float,
) -> tuple[object, list[Attempt | Wait]]:
    """Answer each attempt with the next reply; gives back the result or the error, and all steps."""
    clock = Clock()
    rules = Rules(60.0, Retries(**retries), clock, lambda: 0.0)  # type: ignore[arg-type]
    steps, taken = exchange(call, rules, deadline_s), []
    pending = iter(replies)
    reply: httpx.Response | TrimViTError | None = None
    try:
        while True:
            step = steps.send(reply)
            taken.append(step)
            reply = None
            if isinstance(step, Wait):
                clock.now += step.seconds
            else:
                reply = next(pending)(clock)
    except StopIteration as end:
        return end.value, taken
    except TrimViTError as error:
        return error, taken


def at_once(reply: httpx.Response | TrimViTError) -> Callable[[Clock], httpx.Response | TrimViTError]:
    return lambda _: reply


def after(
    seconds: float, reply: httpx.Response | TrimViTError
) -> Callable[[Clock], httpx.Response | TrimViTError]:
    def later(clock: Clock) -> httpx.Response | TrimViTError:
        clock.now += seconds
        return reply

    return later


def test_an_answer_is_read() -> None:
    """One attempt, with the client's timeout."""
    assert play(ASK, [at_once(answer())]) == ("world", [Attempt(ASK, 60.0)])


def test_a_refusal_is_waited_out() -> None:
    """As long as the server asks, then by doubling."""
    result, steps = play(
        ASK,
        [
            at_once(problem("queue-full", 429, Retry_After="2")),
            at_once(ConnectionFailed("gone")),
            at_once(answer()),
        ],
    )
    assert result == "world"
    assert steps == [Attempt(ASK, 60.0), Wait(2.0), Attempt(ASK, 60.0), Wait(0.5), Attempt(ASK, 60.0)]


def test_the_last_attempts_error_is_raised() -> None:
    """After as many attempts as allowed."""
    result, steps = play(ASK, [at_once(problem("queue-full", 429))] * 3, attempts=3)
    assert isinstance(result, QueueFull)
    assert sum(isinstance(step, Attempt) for step in steps) == 3


def test_a_deadline_bounds_attempts_and_waits() -> None:
    """Each attempt gets what is left; a wait that would outlast it is not begun."""
    busy = problem("queue-full", 429, Retry_After="3")
    result, steps = play(ASK, [after(1, busy), after(1, busy)], deadline_s=7.5)
    assert isinstance(result, QueueFull)
    assert steps == [Attempt(ASK, 7.5), Wait(3.0), Attempt(ASK, 3.5)]
    late, _ = play(ASK, [at_once(answer())], deadline_s=0.0)
    assert isinstance(late, TimedOut)


def test_the_server_is_told_what_is_left() -> None:
    """As deadline_ms of each attempt, unless the options ask for less."""
    call = classify_call(b"image", Options(top_k=1))
    told: Call[str] = Call(call.method, call.path, ASK.read, call.params, call.content, call.tells_deadline)
    busy = problem("queue-full", 429, Retry_After="1")
    _, steps = play(told, [after(0.5, busy), at_once(answer())], deadline_s=3.0)
    attempts = [step.call for step in steps if isinstance(step, Attempt)]
    assert [call.params for call in attempts] == [
        {"top_k": "1", "deadline_ms": "3000"}, {"top_k": "1", "deadline_ms": "1500"},
    ]  # fmt: skip
    own = Call("POST", "/", ASK.read, {"deadline_ms": "200"}, tells_deadline=True)
    _, (step,) = play(own, [at_once(answer())], deadline_s=3.0)
    assert isinstance(step, Attempt)
    assert step.call.params == {"deadline_ms": "200"}
    _, (step,) = play(own, [at_once(answer())])
    assert step == Attempt(own, 60.0)


def test_a_refusal_says_what_the_server_said() -> None:
    """In a class of its own, with its words, its request id and its wait."""
    with pytest.raises(TooLarge, match="why") as raised:
        result_of(ASK, problem("too-large", 413, X_Request_ID="abc"))
    assert (raised.value.status, raised.value.type, raised.value.title) == (413, "too-large", "T")
    assert (raised.value.detail, raised.value.request_id, raised.value.retry_after_s) == ("why", "abc", None)


@pytest.mark.parametrize("kind", PROBLEMS, ids=lambda kind: kind.__name__)
def test_every_problem_of_the_server_is_one_of_the_clients(kind: type[server_errors.Problem]) -> None:
    """On the same side; those of a request for labels under the same name."""
    made = kind("why", retry_after_s=2.0)
    with pytest.raises(Problem, match="why") as raised:
        result_of(ASK, answer(made.status, made.to_dict(), **made.headers()))
    side = ClientProblem if issubclass(kind, server_errors.ClientProblem) else ServerProblem
    assert isinstance(raised.value, side)
    assert raised.value.type == kind.slug
    assert raised.value.retry_after_s == 2.0
    if type(raised.value) is not side:
        assert type(raised.value).__name__ == kind.__name__


def test_an_unknown_problem_goes_by_its_status() -> None:
    """Of a server newer than the client."""
    for status, side in ((418, ClientProblem), (429, ServerProblem), (507, ServerProblem)):
        with pytest.raises(Problem) as raised:
            result_of(ASK, problem("brand-new", status))
        assert type(raised.value) is side
        assert raised.value.type == "brand-new"


@pytest.mark.parametrize(
    "other",
    [
        httpx.Response(502, text="<h1>Bad gateway</h1>"),
        httpx.Response(200, text="hello"),
        httpx.Response(200, json={"goodbye": 1}),
        httpx.Response(200, json=[]),
        httpx.Response(302, headers={"Location": "/elsewhere"}),
        httpx.Response(500, text="{", headers={"Content-Type": "application/problem+json"}),
        httpx.Response(500, json=[], headers={"Content-Type": "application/problem+json; charset=utf-8"}),
        httpx.Response(500, json=7, headers={"Content-Type": "application/problem+json"}),
    ],
    ids=lambda response: f"{response.status_code} {response.text}",
)
def test_what_no_trimvit_server_says_is_unexpected(other: httpx.Response) -> None:
    """With its status and its beginning."""
    other.request = httpx.Request("GET", "http://test/hello")
    with pytest.raises(UnexpectedAnswer, match="not as a TrimViT server") as raised:
        result_of(ASK, other)
    assert raised.value.status == other.status_code


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (httpx.ConnectError("refused"), ConnectionFailed, "cannot be reached: refused"),
        (httpx.ConnectTimeout(""), ConnectionFailed, "cannot be reached: ConnectTimeout"),
        (httpx.ReadTimeout("slow"), TimedOut, "no answer within 1.5 s"),
        (httpx.WriteTimeout("slow"), TimedOut, "no answer within 1.5 s"),
        (httpx.ReadError("reset"), ConnectionFailed, "the connection broke: reset"),
        (httpx.RemoteProtocolError("half"), ConnectionFailed, "the connection broke: half"),
    ],
    ids=repr,
)
def test_what_keeps_an_answer_from_coming(
    error: httpx.TransportError, kind: type[TrimViTError], words: str
) -> None:
    """It never came, it broke off, or it took too long."""
    found = failure_of(error, 1.5)
    assert type(found) is kind
    assert words in str(found)


def test_options_are_those_of_the_server() -> None:
    """Every option that the server has may be given; what is not given is not sent."""
    full = Options(
        keep_ratio=0.5, compute=0.5, keep_mass=0.5, cascade=False, criterion="mad", reducer="fuse", top_k=3,
        mask="grid", mask_stages=True, seed=7, deadline_ms=100,
        min_keep_ratio=0.3, priority="batch", model="small", more={"from_tomorrow": 1},
    ).query()  # fmt: skip
    # What errors asks for is a method here, classify_together.
    assert full.keys() - {"from_tomorrow"} == ImageOptions.model_fields.keys() - {"errors"}
    assert (full["cascade"], full["mask_stages"], full["keep_ratio"]) == ("false", "true", "0.5")
    assert Options().query() == {}
    assert ImageOptions.model_validate(Options(keep_ratio=1e-5, seed=0).query()).keep_ratio == 1e-5
