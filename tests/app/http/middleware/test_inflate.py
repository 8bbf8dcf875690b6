"""Bodies with a Content-Encoding: inflated on every route, within limits, or refused with what is allowed."""

import asyncio
import base64
import contextlib
import gzip
import json
import zlib
from collections.abc import Callable, Iterable

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from starlette.types import Message, Scope

from app.errors import Overloaded, Problem, TooLarge, UnreadableRequest
from app.http.bodies.memory import Memory, Share, set_share
from app.http.middleware.inflate import Inflated, Inflater
from tests.app.fakes import MODEL, FakeDispatch, encoded

IMAGE = encoded()
BASE64 = base64.b64encode(IMAGE).decode()
BOUNDARY_FORM = (
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    + IMAGE
    + b"\r\n--b--\r\n"
)
TENSOR = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [BASE64]}]}
ROUTES = {
    "/v1/classify": (IMAGE, "image/png"),
    "/v1/classify?of=json": (json.dumps({"image": BASE64}).encode(), "application/json"),
    "/v1/classify?of=form": (BOUNDARY_FORM, "multipart/form-data; boundary=b"),
    "/": (IMAGE, "image/png"),
    f"/models/{MODEL.name}": (json.dumps({"inputs": BASE64}).encode(), "application/json"),
    f"/v2/models/{MODEL.name}/infer": (json.dumps(TENSOR).encode(), "application/json"),
}


def raw_deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(data) + deflater.flush()


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    " GZIP ": gzip.compress,
    "deflate": zlib.compress,
    "DEFLATE": raw_deflate,
    "identity": bytes,
    "gzip, identity": gzip.compress,
    "gzip, gzip": lambda data: gzip.compress(gzip.compress(data)),
    "deflate, gzip": lambda data: gzip.compress(zlib.compress(data)),
    "": bytes,
}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("coding", CODINGS)
def test_every_route_takes_bodies_of_every_coding(
    client: TestClient, dispatch: FakeDispatch, path: str, coding: str
) -> None:
    """gzip, deflate with or without zlib's wrapping, one upon another, and none: the same image."""
    body, kind = ROUTES[path]
    headers = {"Content-Encoding": coding, "Content-Type": kind}
    response = client.post(path.partition("?")[0], content=CODINGS[coding](body), headers=headers)
    assert response.status_code == 200, response.text
    assert len(dispatch.questions) == 1


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, br", "gzip, gzip, gzip", "nonsense"])
def test_another_coding_is_a_415_that_names_what_is_allowed(
    client: TestClient, path: str, coding: str
) -> None:
    """In words and in Accept-Encoding, before the body is read."""
    response = client.post(path.partition("?")[0], content=b"x", headers={"Content-Encoding": coding})
    assert response.status_code == 415
    assert response.headers["accept-encoding"] == "gzip, deflate"
    assert "Content-Encoding" in response.text


@pytest.mark.parametrize(
    ("body", "coding", "status"),
    [
        (b"abc", "gzip", 400),
        (b"", "gzip", 400),
        (gzip.compress(IMAGE, mtime=0)[:-9], "gzip", 400),
        (gzip.compress(IMAGE, mtime=0) + b"x", "gzip", 400),
        (zlib.compress(IMAGE) + b"x", "deflate", 400),
        (zlib.compress(IMAGE)[:-1], "deflate", 400),
        (b"x", "deflate", 400),
        (gzip.compress(bytes(1001), mtime=0), "gzip", 413),
        (raw_deflate(bytes(1001)), "deflate", 413),
        (gzip.compress(gzip.compress(bytes(10**7), mtime=0), mtime=0), "gzip, gzip", 413),
        (gzip.compress(b"", mtime=0) * 40, "gzip", 422),
    ],
    # The two processes that tests run in must give them the same names, so no body may depend on the time.
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)
def test_what_cannot_be_inflated_is_refused(
    make_client: Callable[..., TestClient], body: bytes, coding: str, status: int
) -> None:
    """Broken data, data that goes on or ends too early, and more than a body may have."""
    client = make_client(max_body_bytes=1000)
    response = client.post("/v1/classify", content=body, headers={"Content-Encoding": coding})
    assert response.status_code == status, response.text


def test_what_has_no_body_has_no_coding(client: TestClient) -> None:
    """A probe is answered whatever its headers say."""
    assert client.get("/livez", headers={"Content-Encoding": "br"}).status_code == 200


def inflated(pieces: Iterable[bytes], coding: str, most_bytes: int = 10**6) -> bytes:
    inflater = Inflater(coding, most_bytes)
    found = []
    for piece in pieces:
        inflater.feed(piece)
        while inflater.has_more:
            found.append(inflater.inflate())
    inflater.check_end()
    return b"".join(found)


@given(st.binary(max_size=2000), st.integers(1, 50), st.sampled_from(["gzip", "deflate", "raw", "members"]))
def test_pieces_of_any_size_inflate_to_the_same(data: bytes, size: int, form: str) -> None:
    """However the network cuts them."""
    made = {
        "gzip": gzip.compress,
        "deflate": zlib.compress,
        "raw": raw_deflate,
        "members": lambda data: gzip.compress(data[:7]) + gzip.compress(data[7:]),
    }[form](data)
    pieces = [made[start : start + size] for start in range(0, len(made), size)]
    assert inflated(pieces, "gzip" if form in ("gzip", "members") else "deflate") == data


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_bytes_of_any_kind_are_inflated_or_refused(data: bytes, coding: str) -> None:
    """Nothing else is raised."""
    with contextlib.suppress(UnreadableRequest, TooLarge):
        inflated([data], coding, 1000)


def test_members_are_counted() -> None:
    """Empty ones cost time and give nothing."""
    assert inflated([gzip.compress(b"a")] * 4096, "gzip") == b"a" * 4096
    with pytest.raises(UnreadableRequest, match="4096 members"):
        inflated([gzip.compress(b"")] * 4097, "gzip")


async def read(body: bytes, memory: Memory) -> int:
    """How many bytes an application behind the middleware reads of it."""
    sizes: list[int] = []
    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "headers": [(b"content-encoding", b"gzip")],
    }
    share = Share(memory)
    set_share(scope, share)
    share.take(len(body))

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    async def app(scope: Scope, receive: Callable[[], object], send: object) -> None:
        assert scope["headers"] == []
        more = True
        while more:
            message = await receive()  # type: ignore[misc]
            sizes.append(len(message["body"]))
            more = message["more_body"]

    try:
        await Inflated(app, 10**9)(scope, receive, send)  # type: ignore[arg-type]
    finally:
        share.keep(0)
    return sum(sizes)


@pytest.mark.anyio
async def test_what_is_inflated_counts_in_the_memory_of_all_bodies() -> None:
    """The first is refused whose next piece does not fit, and gives its memory to the others."""
    memory = Memory(10 * 2**20)
    body = gzip.compress(bytes(4 * 2**20))
    found = await asyncio.gather(*(read(body, memory) for _ in range(8)), return_exceptions=True)
    refused = [problem for problem in found if isinstance(problem, Problem)]
    assert {type(problem) for problem in refused} == {Overloaded}
    assert [size for size in found if isinstance(size, int)].count(4 * 2**20) == 8 - len(refused) >= 2
    assert repr(memory) == f"<Memory 0 of {10 * 2**20} bytes taken>"
    assert await read(body, memory) == 4 * 2**20
    with pytest.raises(TooLarge):
        await read(gzip.compress(bytes(11 * 2**20)), memory)


def test_a_length_that_is_of_what_came_does_not_mislead(client: TestClient) -> None:
    """The body inflates to more than its Content-Length, and is read to its end."""
    body = gzip.compress(IMAGE + bytes(5000))
    assert len(body) < len(IMAGE) + 5000
    response = client.post("/v1/classify", content=body, headers={"Content-Encoding": "gzip"})
    assert response.status_code == httpx.codes.OK
