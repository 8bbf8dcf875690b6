"""A request whose replica dies is asked again; scripted applications stand for Ray."""

from collections.abc import Sequence

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.ray.ask_again import AskAgain, middlewares

pytestmark = pytest.mark.anyio
PROBLEM = "application/problem+json"


class Proxy:
    """Ray's proxy: passes each attempt to the next replica, writes into the scope, and adds a request id."""

    def __init__(self, *replicas: ASGIApp) -> None:
        self.replicas = list(replicas)
        self.bodies: list[bytes] = []
        self.ids: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        self.ids.append(headers[b"x-request-id"].decode())
        scope["headers"].append((b"x-of-ray", b"1"))
        scope["path"] = "/spoilt"
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            body += message["body"]
            if not message.get("more_body"):
                break
        self.bodies.append(body)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", headers[b"x-request-id"])]
            await send(message)

        await self.replicas.pop(0)(scope, receive, send_with_id)


def answering(
    status: int = 200, content_type: str = "application/json", request_id: str | None = "of-the-app"
) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", content_type.encode())]
        if request_id is not None:
            headers.append((b"x-request-id", request_id.encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        await send({"type": "http.response.body", "body": b"cd"})

    return app


async def dies(scope: Scope, receive: Receive, send: Send) -> None:
    """As Ray's proxy does for a replica that dies with a request: it sends nothing."""


async def dies_after_its_head(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def raises(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("a bug in the proxy")


async def raises_halfway(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ab", "more_body": True})
    raise RuntimeError("a bug in the proxy")


async def ask(proxy: Proxy, body: Sequence[bytes] = (b"photo", b"graph"), **headers: str) -> httpx.Response:
    async def content():  # type: ignore[no-untyped-def]
        for part in body:
            yield part

    transport = httpx.ASGITransport(AskAgain(proxy))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post("/v1/classify", content=content(), headers=headers)


async def test_an_answer_passes_unchanged_with_one_request_id() -> None:
    """The application's id stays, the proxy's second one goes."""
    response = await ask(Proxy(answering()))
    assert (response.status_code, response.content) == (200, b"abcd")
    assert response.headers.get_list("X-Request-ID") == ["of-the-app"]


@pytest.mark.parametrize("death", [dies, dies_after_its_head])
async def test_what_a_dead_replica_had_is_asked_of_the_next(death: ASGIApp) -> None:
    """The whole request comes again, under the same id, to a scope that the first has not spoilt."""
    proxy = Proxy(death, answering())
    response = await ask(proxy, **{"X-Request-ID": "mine"})
    assert (response.status_code, response.content) == (200, b"abcd")
    assert proxy.bodies == [b"photograph"] * 2
    assert proxy.ids == ["mine"] * 2


async def test_without_an_id_both_replicas_are_given_the_same_new_one() -> None:
    proxy = Proxy(dies, answering())
    await ask(proxy)
    assert len(set(proxy.ids)) == 1
    assert len(proxy.ids[0]) == 32


async def test_a_request_that_two_replicas_died_with_is_given_up() -> None:
    """It may be why: a third replica is not asked."""
    proxy = Proxy(dies, dies, answering())
    response = await ask(proxy)
    assert response.headers["Content-Type"] == PROBLEM
    assert response.json()["type"] == "urn:trimvit:problem:engine-lost"
    assert response.json()["status"] == response.status_code
    assert len(proxy.replicas) == 1
    assert response.headers["X-Request-ID"] == proxy.ids[0]


async def test_a_client_that_went_away_is_not_asked_for_again() -> None:
    """The proxy sends nothing in that case either; nobody waits for another replica's answer."""
    proxy = Proxy(dies, answering())
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await AskAgain(proxy)({"type": "http", "path": "/", "method": "POST", "headers": []}, receive, send)
    assert sent == []
    assert len(proxy.replicas) == 1


@pytest.mark.parametrize(
    ("of_the_proxy", "status", "slug"), [(503, 503, "not-ready"), (408, 504, "deadline-passed")]
)
async def test_the_proxys_own_refusals_get_our_form(of_the_proxy: int, status: int, slug: str) -> None:
    """Ray says them in plain text; a client of /v1 can rely on problem+json."""
    response = await ask(Proxy(answering(of_the_proxy, "text/plain", None)))
    assert response.status_code == status
    assert response.headers["Content-Type"] == PROBLEM
    assert response.json()["type"] == f"urn:trimvit:problem:{slug}"
    assert len(response.headers.get_list("X-Request-ID")) == 1


async def test_our_own_503_is_left_alone() -> None:
    """A replica that drains says so itself."""
    response = await ask(Proxy(answering(503, PROBLEM)))
    assert (response.status_code, response.content) == (503, b"abcd")


async def test_what_is_not_http_is_passed_on() -> None:
    """Ray's lifespan and websockets are none of ours."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    (middleware,) = middlewares()
    await middleware.cls(app)({"type": "lifespan"}, None, None)  # type: ignore[arg-type, call-arg]
    assert seen == ["lifespan"]


async def test_a_proxy_that_raises_before_it_answers_is_asked_again() -> None:
    """Its exception is an incident, and the client hears of it only where the next replica raises, too."""
    assert (await ask(Proxy(raises, answering()))).status_code == 200
    lost = await ask(Proxy(raises, raises))
    assert (lost.status_code, lost.headers["Content-Type"]) == (500, PROBLEM)


async def test_half_an_answer_is_not_begun_again() -> None:
    """A second answer behind the first half of one would be read as one."""
    proxy = Proxy(raises_halfway, answering())
    with pytest.raises(RuntimeError, match="a bug in the proxy"):
        await ask(proxy)
    assert len(proxy.replicas) == 1
