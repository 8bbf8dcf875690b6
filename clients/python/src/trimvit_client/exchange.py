"""One call of the server, from the first attempt to its result, without any I/O.

A call is a generator: it yields the next action, an attempt or a wait, receives the outcome, and returns the
result or raises. The sync and the async client only carry out these actions, so retries, deadlines and
answers are handled in one place.
"""

import base64
import json
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from trimvit_client.address import why
from trimvit_client.errors import (
    ConnectionFailed,
    Problem,
    TimedOut,
    TrimViTError,
    UnexpectedAnswer,
    problem_of,
)
from trimvit_client.options import Options
from trimvit_client.results import (
    Classification,
    Embedding,
    Model,
    RepositoryModel,
    classification_of,
    embedding_of,
    models_of,
    repository_of,
    results_of,
)
from trimvit_client.retries import Retries, retry_after_s

_PROBLEM, _JSON = "application/problem+json", "application/json"
_LONGEST_DEADLINE_MS = 600_000  # of the server
_SHOWN = 200  # characters of an answer that cannot be read

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """A request to the server, and how its answer is read. With ``tells_deadline``, the remaining deadline is
    sent to the server. ``timeout_s``: for one attempt, in place of the client's. ``plain_errors``: errors of
    the path are `{"error": ...}`."""

    method: str
    path: str
    read: Callable[[httpx.Response], Result]
    params: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    tells_deadline: bool = False
    timeout_s: float | None = None
    plain_errors: bool = False
    content_type: str = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Attempt:
    """Send the call once and return the answer, or the error if there is none."""

    call: Call[Any]
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for this time."""

    seconds: float


Reply = httpx.Response | TrimViTError | None
Exchange = Generator[Attempt | Wait, Reply, Result]


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings of a client for all its calls. ``clock`` returns seconds, ``draw`` numbers from 0 to 1."""

    timeout_s: float
    retries: Retries
    clock: Callable[[], float]
    draw: Callable[[], float]


def exchange(call: Call[Result], rules: Rules, deadline_s: float | None) -> Exchange[Result]:
    """The steps of a call. ``deadline_s`` is for all its attempts and waits together.

    Raises TrimViTError: TimedOut at the deadline, otherwise the error of the last attempt.
    """
    ends = math.inf if deadline_s is None else rules.clock() + deadline_s
    for number in count(1):
        left_s = ends - rules.clock()
        if left_s <= 0:
            raise TimedOut(f"the deadline of {deadline_s:g} s passed")
        timeout_s = rules.timeout_s if call.timeout_s is None else call.timeout_s
        attempt = Attempt(_told(call, left_s), min(timeout_s, left_s))
        reply = yield attempt
        try:
            if isinstance(reply, TrimViTError):
                raise reply
            assert reply is not None
            return result_of(call, reply)
        except TrimViTError as error:
            wait_s = rules.retries.wait_s(number, error, ends - rules.clock(), rules.draw())
            if wait_s is None:
                raise
        yield Wait(wait_s)
    raise AssertionError("unreachable")


def _told(call: Call[Result], left_s: float) -> Call[Result]:
    """The call with the remaining time as its `deadline_ms`, if that is less than its own."""
    if not call.tells_deadline or left_s == math.inf:
        return call
    left_ms = max(1, min(math.floor(left_s * 1000), _LONGEST_DEADLINE_MS))
    own_ms = int(call.params.get("deadline_ms", left_ms))
    return replace(call, params={**call.params, "deadline_ms": str(min(left_ms, own_ms))})


def result_of(call: Call[Result], answer: httpx.Response) -> Result:
    """The result of an answer. Raises the Problem of an error, and UnexpectedAnswer for an answer that is not
    from a TrimViT server."""
    try:
        if answer.is_success:
            return call.read(answer)
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        if kind == (_JSON if call.plain_errors else _PROBLEM):
            document = answer.json()
            if not isinstance(document, dict):
                raise TypeError("a problem is an object")
            if call.plain_errors:
                document = {"detail": document["error"]}
            raise problem_of(
                answer.status_code,
                document,
                answer.headers.get("X-Request-ID"),
                retry_after_s(answer.headers.get("Retry-After"), datetime.now(UTC)),
            )
    except (KeyError, TypeError, ValueError) as error:
        raise _unexpected(answer) from error
    raise _unexpected(answer)


def _unexpected(answer: httpx.Response) -> UnexpectedAnswer:
    begin = answer.text[:_SHOWN]
    return UnexpectedAnswer(
        answer.status_code,
        f"{answer.url} answers with {answer.status_code}, not as a TrimViT server: {begin!r}",
    )


def failure_of(error: httpx.TransportError, timeout_s: float) -> TrimViTError:
    """The exception for an attempt without an answer."""
    if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout | httpx.ConnectError):
        return ConnectionFailed(f"the server cannot be reached: {why(error)}")
    if isinstance(error, httpx.TimeoutException):
        return TimedOut(f"no answer within {timeout_s:g} s")
    return ConnectionFailed(f"the connection broke: {str(error) or type(error).__name__}")


def classify_call(image: bytes, options: Options) -> Call[Classification]:
    """Label one image."""

    def read(answer: httpx.Response) -> Classification:
        return classification_of(answer.json(), answer.headers.get("X-Request-ID"))

    return Call("POST", "/v1/classify", read, options.query(), image, tells_deadline=True)


def together_call(images: Sequence[tuple[bytes, Options]]) -> Call[tuple[Classification | Problem, ...]]:
    """Label several images in one request."""

    def read(answer: httpx.Response) -> tuple[Classification | Problem, ...]:
        results = results_of(answer.json(), answer.headers.get("X-Request-ID"))
        if len(results) != len(images):
            raise ValueError(f"{len(results)} results for {len(images)} images")
        return results

    each = [{"image": base64.b64encode(data).decode(), **options.query()} for data, options in images]
    content = json.dumps({"images": each}).encode()
    return Call(
        "POST",
        "/v1/classify",
        read,
        {"errors": "each"},
        content,
        tells_deadline=True,
        content_type="application/json",
    )


def embed_call(image: bytes, options: Options, *, normalize: bool) -> Call[Embedding]:
    """The embedding of one image, as base64, which is a third of the size of numbers in JSON."""

    def read(answer: httpx.Response) -> Embedding:
        return embedding_of(answer.json(), answer.headers.get("X-Request-ID"))

    params = {**options.query(), "encoding": "base64", "normalize": "true" if normalize else "false"}
    return Call("POST", "/v1/embed", read, params, image, tells_deadline=True)


def models_call() -> Call[tuple[Model, ...]]:
    """The served models."""
    return Call("GET", "/v1/models", lambda answer: models_of(answer.json()))


def repository_call() -> Call[tuple[RepositoryModel, ...]]:
    """The models that are served or may be loaded."""
    return Call(
        "POST", "/v2/repository/index", lambda answer: repository_of(answer.json()), plain_errors=True
    )


def change_call(name: str, verb: str, timeout_s: float) -> Call[None]:
    """``load`` or ``unload`` a model."""
    path = f"/v2/repository/models/{quote(name)}/{verb}"
    return Call("POST", path, lambda _: None, timeout_s=timeout_s, plain_errors=True)


def headers_of(api_key: str | None, call: Call[object]) -> dict[str, str]:
    """The headers of every request."""
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    return headers if call.content is None else {**headers, "Content-Type": call.content_type}
