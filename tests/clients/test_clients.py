"""The sync and the async client do the same: one test for both wherever they can."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import httpx
import pytest
from trimvit_client import (
    AsyncClient,
    Classification,
    Client,
    ClientProblem,
    Embedding,
    Image,
    InvalidValue,
    Options,
    QueueFull,
    RepositoryModel,
    Retries,
    ServerProblem,
    TrimViTError,
    UndecodableImage,
    UnexpectedAnswer,
    UnreadableImage,
)

from tests.app.fakes import encoded

ANSWER = {
    "model": "toy",
    "results": [
        {
            "labels": [{"index": 0, "label": "tench", "score": 0.75}],
            "keep_ratio": 0.5,
            "requested_keep_ratio": 0.5,
            "lowered": None,
            "criterion": "variance",
            "reducer": "drop",
            "patches": {"total": 6, "kept": 2, "per_stage": [3, 2], "grid": [2, 3]},
            "compute": 0.5,
            "runs": 1,
        }
    ],
    "timings_ms": {"decode": 1, "queue": 2, "compute": 3, "total": 7},
}
QUICK = Retries(first_wait_s=0, longest_wait_s=0)


def labelled(request: httpx.Request) -> httpx.Response:
    """The image's bytes come back as the model's name."""
    return httpx.Response(200, json={**ANSWER, "model": request.content.decode()})


def refusal(status: int, slug: str) -> httpx.Response:
    document = {"type": f"urn:trimvit:problem:{slug}", "title": "T", "status": status, "detail": "why"}
    return httpx.Response(status, json=document, headers={"Content-Type": "application/problem+json"})


class Both:
    """A client of either kind, called the same way, on a server that is a function."""

    def __init__(
        self, kind: str, respond: Callable[[httpx.Request], httpx.Response], **arguments: Any
    ) -> None:
        self.asks_async = kind == "async"
        transport = httpx.MockTransport(respond)
        self.sync = Client("http://test/", http=httpx.Client(transport=transport), **arguments)
        self.asynchronous = lambda: AsyncClient(
            "http://test/", http=httpx.AsyncClient(transport=transport), **arguments
        )

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        if not self.asks_async:
            return getattr(self.sync, method)(*arguments, **named)

        async def ask() -> Any:
            async with self.asynchronous() as client:
                return await getattr(client, method)(*arguments, **named)

        return asyncio.run(ask())

    def many(self, *arguments: Any, **named: Any) -> list[Any]:
        if not self.asks_async:
            return list(self.sync.classify_many(*arguments, **named))

        async def ask() -> list[Any]:
            async with self.asynchronous() as client:
                return [answer async for answer in client.classify_many(*arguments, **named)]

        return asyncio.run(ask())


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_an_image_is_sent_with_its_options(kind: str) -> None:
    """As the raw body, options in the query, the key as a bearer token."""
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return labelled(request)

    client = Both(kind, respond, api_key="secret")
    answer = client.call("classify", b"photograph", Options(keep_ratio=0.5, cascade=False))
    (request,) = seen
    assert isinstance(answer, Classification)
    assert answer.model == "photograph"
    assert (request.method, str(request.url)) == (
        "POST", "http://test/v1/classify?keep_ratio=0.5&cascade=false",
    )  # fmt: skip
    assert request.headers["Content-Type"] == "application/octet-stream"
    assert request.headers["Authorization"] == "Bearer secret"


def test_an_embedding_is_asked_for_as_base64(kind: str) -> None:
    """With the options of the image, and the time that is left."""
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        (result,) = ANSWER["results"]  # type: ignore[misc]
        vector = {**result, "embedding": "AACAPwAAAMA="}  # type: ignore[dict-item]
        return httpx.Response(200, json={**ANSWER, "results": [vector]})

    answer = Both(kind, respond).call("embed", b"photograph", Options(keep_ratio=0.5), normalize=True)
    assert isinstance(answer, Embedding)
    assert answer.values == (1.0, -2.0)
    (request,) = seen
    assert (request.method, str(request.url)) == (
        "POST", "http://test/v1/embed?keep_ratio=0.5&encoding=base64&normalize=true",
    )  # fmt: skip
    assert request.content == b"photograph"


def test_a_refusal_is_waited_out_and_a_fault_is_raised(kind: str) -> None:
    """Two refusals and an answer; what would fail again is asked once."""
    calls: list[int] = []

    def respond(request: httpx.Request) -> httpx.Response:
        calls.append(1)
        if request.content == b"bad":
            return refusal(422, "invalid-value")
        return refusal(429, "queue-full") if len(calls) < 3 else labelled(request)

    client = Both(kind, respond, retries=QUICK)
    assert client.call("classify", b"good").model == "good"
    assert len(calls) == 3
    with pytest.raises(InvalidValue, match="why"):
        client.call("classify", b"bad")
    assert len(calls) == 4


def test_a_broken_connection_is_tried_again(kind: str) -> None:
    """And in the end told as what it is."""
    calls: list[int] = []

    def respond(request: httpx.Request) -> httpx.Response:
        calls.append(1)
        if len(calls) < 3:
            raise httpx.ConnectError("refused")
        return labelled(request)

    assert Both(kind, respond, retries=QUICK).call("classify", b"x").model == "x"
    calls.clear()
    with pytest.raises(TrimViTError, match="the server cannot be reached: refused"):
        Both(kind, respond, retries=Retries(2, 0, 0)).call("classify", b"x")


def test_many_images_come_back_in_order_with_their_own_options(kind: str) -> None:
    """However they are mixed; of a generator too."""
    queries: dict[str, str] = {}

    def respond(request: httpx.Request) -> httpx.Response:
        queries[request.content.decode()] = request.url.query.decode()
        return labelled(request)

    def images() -> Iterator[bytes | Image]:
        for number in range(40):
            data = f"{number}".encode()
            yield Image(data, Options(top_k=number)) if number % 2 else data

    answers = Both(kind, respond).many(images(), Options(keep_ratio=0.5), concurrency=5)
    assert [answer.model for answer in answers] == [str(number) for number in range(40)]
    for number in range(40):
        assert queries[str(number)] == (f"top_k={number}" if number % 2 else "keep_ratio=0.5")


def test_errors_are_raised_or_take_an_answers_place(kind: str, tmp_path: Any) -> None:
    """The caller chooses; a file that cannot be read is one of them."""

    def respond(request: httpx.Request) -> httpx.Response:
        return refusal(422, "invalid-value") if request.content == b"bad" else labelled(request)

    client = Both(kind, respond)
    images = [b"a", b"bad", tmp_path / "gone", b"b"]
    found = client.many(images, errors="return")
    assert [type(each) for each in found] == [Classification, InvalidValue, UnreadableImage, Classification]
    with pytest.raises(InvalidValue):
        client.many(images)


def test_no_more_than_asked_for_are_under_way(kind: str) -> None:
    """And images are taken as they are needed, not all at once."""
    lock, under_way, most, taken = threading.Lock(), 0, 0, 0
    answered = 0

    def images() -> Iterable[bytes]:
        nonlocal taken
        for _ in range(30):
            taken += 1
            assert taken - answered <= 2 * 3 + 3
            yield b"x"

    def respond(request: httpx.Request) -> httpx.Response:
        nonlocal under_way, most, answered
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.002)
        with lock:
            under_way -= 1
            answered += 1
        return labelled(request)

    assert len(Both(kind, respond).many(images(), concurrency=3)) == 30
    assert 1 <= most <= 3


def test_whoever_stops_listening_stops_the_sending() -> None:
    """What was not begun is not sent."""
    sent: list[bytes] = []

    def respond(request: httpx.Request) -> httpx.Response:
        sent.append(request.content)
        return labelled(request)

    answers = Both("sync", respond).sync.classify_many((b"x" for _ in range(1000)), concurrency=2)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert len(sent) < 20

    async def listen_once() -> None:
        async with Both("async", respond).asynchronous() as client:
            stream: AsyncIterator[Classification] = client.classify_many(
                (b"x" for _ in range(1000)), concurrency=2
            )
            async for _ in stream:
                break
            await stream.aclose()  # type: ignore[attr-defined]

    sent.clear()
    asyncio.run(listen_once())
    assert len(sent) < 20


def test_a_concurrency_of_none_is_refused(kind: str) -> None:
    """At once."""
    with pytest.raises(ValueError, match="concurrency must be at least 1, got 0"):
        Both(kind, labelled).many([b"x"], concurrency=0)


def test_models_and_readiness(kind: str) -> None:
    """Refusals are told; who cannot be reached is not ready."""

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/readyz":
            return httpx.Response(503)
        return refusal(429, "queue-full")

    client = Both(kind, respond, retries=QUICK)
    assert client.call("is_ready") is False
    with pytest.raises(QueueFull):
        client.call("models")

    def gone(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    assert Both(kind, gone).call("is_ready") is False
    assert Both(kind, lambda _: httpx.Response(200)).call("is_ready") is True


def test_models_are_listed_loaded_and_unloaded(kind: str) -> None:
    """By their names; what is refused there in plain words is a problem all the same, and a worker that dies
    of a model is not sent it again."""
    asked: list[tuple[str, str]] = []

    def respond(request: httpx.Request) -> httpx.Response:
        path = request.url.raw_path.decode().removeprefix("/v2/repository/")
        asked.append((request.method, path))
        if path == "index":
            return httpx.Response(200, json=[{"name": "a/b", "version": "1", "state": "READY", "reason": ""}])
        if path.endswith("/load"):
            return httpx.Response(200, json={})
        return httpx.Response(409 if "first" in path else 500, json={"error": "it stays"})

    client = Both(kind, respond, retries=QUICK)
    assert client.call("repository") == (RepositoryModel("a/b", "READY"),)
    client.call("load", "a/b c")
    with pytest.raises(ClientProblem, match="it stays") as caught:
        client.call("unload", "first")
    assert caught.value.status == 409
    with pytest.raises(ServerProblem):
        client.call("unload", "other")
    assert asked == [
        ("POST", "index"),
        ("POST", "models/a/b%20c/load"),
        ("POST", "models/first/unload"),
        ("POST", "models/other/unload"),
    ]
    page = Both(kind, lambda _: httpx.Response(404, text="<html>"))
    with pytest.raises(UnexpectedAnswer):
        page.call("repository")


def test_a_client_closes_its_own_connections_only() -> None:
    """One that was given is its owner's."""
    given = httpx.Client(transport=httpx.MockTransport(labelled))
    with Client("http://test", http=given) as client:
        assert repr(client) == "<Client of http://test>"
    assert not given.is_closed
    with Client("http://test") as own:
        pass
    assert own._http.is_closed
    assert encoded()


def test_images_sent_together_have_an_answer_each(kind: str) -> None:
    """One request with the images in order, each with its own options; a problem takes the place of an
    answer."""
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        bad = {"type": "urn:trimvit:problem:undecodable-image", "title": "T", "status": 422, "detail": "why"}
        results = [*ANSWER["results"], {**bad, "image": 1}]  # type: ignore[misc]
        return httpx.Response(207, json={**ANSWER, "results": results})

    images = [b"one", Image(b"two", Options(top_k=2))]
    good, bad = Both(kind, respond).call("classify_together", images, Options(keep_ratio=0.5))
    assert isinstance(good, Classification)
    assert isinstance(bad, UndecodableImage)
    assert (bad.status, bad.detail) == (422, "why")
    (request,) = seen
    assert str(request.url) == "http://test/v1/classify?errors=each"
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.content) == {
        "images": [{"image": "b25l", "keep_ratio": "0.5"}, {"image": "dHdv", "top_k": "2"}]
    }


def test_a_lone_images_problem_is_raised_whatever_the_status(kind: str) -> None:
    """Who asks for errors=each by hand gets no half-read answer; too few results are told."""
    bad = {"type": "urn:trimvit:problem:undecodable-image", "title": "T", "status": 422, "detail": "why"}
    client = Both(kind, lambda _: httpx.Response(207, json={**ANSWER, "results": [bad]}))
    with pytest.raises(UndecodableImage):
        client.call("classify", b"one", Options(more={"errors": "each"}))
    with pytest.raises(UnexpectedAnswer):
        client.call("classify_together", [b"one", b"two"])
    with pytest.raises(ValueError, match="no image"):
        client.call("classify_together", [])
