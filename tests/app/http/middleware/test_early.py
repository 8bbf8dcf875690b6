"""Refusal by a request's head, before its body is read: over real sockets, where that can be seen."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import uvicorn

from app.dispatch.policy.brown_out import CEILINGS
from app.errors import DeadlineUnmeetable, QueueFull
from app.http.server.listeners import main_config
from app.main import create_app
from app.settings.settings import Settings
from models.schedule import compute
from tests.app.fakes import MODEL, FakeDispatch, encoded

WITHIN_S = 60.0
ARCH, STAGES = MODEL.architecture, MODEL.method.stages
BODY = encoded()
LATE = DeadlineUnmeetable("it would be late", retry_after_s=2.0)
FULL = QueueFull("much waits", retry_after_s=3.0)


@contextmanager
def serving(dispatch: FakeDispatch, **settings: object) -> Iterator[int]:
    """The application behind the server's own connections, in a thread; its port."""
    chosen = Settings(**settings)  # type: ignore[arg-type]
    server = uvicorn.Server(main_config(create_app(chosen, dispatch), chosen))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(WITHIN_S)


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[FakeDispatch, int]]:
    """A dispatcher and the port of a server on it."""
    dispatch = FakeDispatch()
    with serving(dispatch, max_priority="high") as port:
        yield dispatch, port


@pytest.fixture
def dispatch(shared: tuple[FakeDispatch, int]) -> FakeDispatch:
    """They refuse nothing, and nothing was asked."""
    dispatch, _ = shared
    dispatch.refuses_early = dispatch.refuses = None
    dispatch.asked_early.clear()
    dispatch.expected.clear()
    dispatch.questions.clear()
    return dispatch


@pytest.fixture
def connection(shared: tuple[FakeDispatch, int]) -> Iterator[socket.socket]:
    with connected(shared[1]) as connection:
        yield connection


def head(path: str = "/v1/classify", *headers: str, length: int = len(BODY)) -> bytes:
    return "\r\n".join(
        [f"POST {path} HTTP/1.1", "Host: here", f"Content-Length: {length}", *headers, "", ""]
    ).encode()


def received(connection: socket.socket) -> bytes:
    """What comes next."""
    part = connection.recv(65536)
    assert part, "the server hung up"
    return part


def answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the one answer that is on its way."""
    said = b""
    while b"\r\n\r\n" not in said:
        said += received(connection)
    top, _, body = said.partition(b"\r\n\r\n")
    status, *lines = top.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += received(connection)
    return int(status.split()[1]), headers, body


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=WITHIN_S)


@pytest.mark.parametrize("problem", [LATE, FULL])
@pytest.mark.parametrize("kind", ["image/jpeg", "application/octet-stream", None])
def test_a_raw_image_that_would_be_refused_is_refused_by_its_head(
    dispatch: FakeDispatch,
    connection: socket.socket,
    problem: DeadlineUnmeetable | QueueFull,
    kind: str | None,
) -> None:
    """The answer is there before a byte of the body was sent, and is the one that would come later."""
    dispatch.refuses_early = problem
    connection.sendall(
        head("/v1/classify", "X-Request-ID: mine", *([] if kind is None else [f"Content-Type: {kind}"]))
    )
    status, headers, body = answer(connection)
    assert (status, headers["content-type"]) == (problem.status, "application/problem+json")
    assert (headers["x-request-id"], headers["retry-after"]) == (
        "mine",
        str(round(problem.retry_after_s or 0)),
    )
    assert json.loads(body)["type"] == f"urn:trimvit:problem:{problem.slug}"
    assert json.loads(body)["image"] == 0
    dispatch.refuses_early, dispatch.refuses = None, problem
    connection.sendall(BODY + head() + BODY)
    _, _, later = answer(connection)
    assert json.loads(later) == json.loads(body)


def test_so_is_an_image_whose_embedding_is_wanted(dispatch: FakeDispatch, connection: socket.socket) -> None:
    """With the options of that route, too."""
    dispatch.refuses_early = LATE
    connection.sendall(head("/v1/embed?normalize=true&encoding=base64&deadline_ms=100"))
    assert answer(connection)[0] == 503


@pytest.mark.parametrize("path", ["/", f"/models/{MODEL.name}"])
def test_so_it_is_on_the_routes_in_hugging_faces_shape(
    dispatch: FakeDispatch, connection: socket.socket, path: str
) -> None:
    """In the words of that shape; what belongs to it in the query is no option."""
    dispatch.refuses_early = LATE
    connection.sendall(head(f"{path}?function_to_apply=sigmoid&deadline_ms=100"))
    status, headers, body = answer(connection)
    assert (status, headers["retry-after"]) == (503, "2")
    assert json.loads(body) == {"error": "it would be late"}


def test_so_it_is_on_sagemakers_route_by_its_header(
    dispatch: FakeDispatch, connection: socket.socket
) -> None:
    """The options that its header holds are known before the body, too, and are those that come later."""
    dispatch.refuses_early = LATE
    attributes = "X-Amzn-SageMaker-Custom-Attributes: keep_ratio=0.5,deadline_ms=20000"
    connection.sendall(head("/invocations", attributes))
    assert answer(connection)[0] == 503
    dispatch.refuses_early = None
    connection.sendall(BODY + head("/invocations", attributes) + BODY)
    assert answer(connection)[0] == 200
    early, later = dispatch.asked_early[0], dispatch.expected[0]
    assert early.share == later.share == compute(ARCH, STAGES, 0.5)
    assert (early.wait_limit_s, early.deadline_s <= 20.0) == (later.wait_limit_s, True)


def test_the_connection_goes_on_while_the_body_comes(
    dispatch: FakeDispatch, connection: socket.socket
) -> None:
    """What still comes of it is dropped; the next request is answered."""
    dispatch.refuses_early = LATE
    for _ in range(3):
        connection.sendall(head())
        assert answer(connection)[0] == 503
        connection.sendall(BODY[:100])
        connection.sendall(BODY[100:])
    dispatch.refuses_early = None
    connection.sendall(head() + BODY)
    assert answer(connection)[0] == 200
    assert len(dispatch.questions) == 1


def test_who_waits_for_leave_to_send_the_body_never_sends_it(
    dispatch: FakeDispatch, connection: socket.socket
) -> None:
    """No 100 comes, but the refusal; as the body may never come now, the connection ends."""
    dispatch.refuses_early = LATE
    connection.sendall(head("/v1/classify", "Expect: 100-continue"))
    status, headers, _ = answer(connection)
    assert (status, headers["connection"]) == (503, "close")
    with suppress(ConnectionResetError):
        assert connection.recv(65536) == b""


def test_who_has_a_chance_gets_that_leave(dispatch: FakeDispatch, connection: socket.socket) -> None:
    """And then the answer."""
    connection.sendall(head("/v1/classify", "Expect: 100-continue"))
    assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(BODY)
    assert answer(connection)[0] == 200


def test_what_is_asked_of_the_dispatcher_is_what_is_known_of_the_image(
    dispatch: FakeDispatch, connection: socket.socket
) -> None:
    """By the head the same as later: share with all lowered that may be, deadline, priority, caller."""
    queries = (
        "keep_ratio=0.5",
        "min_keep_ratio=0.1&priority=batch&deadline_ms=20000",
        "keep_ratio=auto&deadline_ms=5000&priority=high",
        "keep_mass=0.8",
        "cascade=true",
    )
    for query in queries * 2:  # the second time they are known
        connection.sendall(head(f"/v1/classify?{query}") + BODY)
        assert answer(connection)[0] == 200
    for early, later in zip(dispatch.asked_early, dispatch.expected, strict=True):
        assert (early.share, early.wait_limit_s) == (later.share, later.wait_limit_s)
        assert (early.priority, early.caller) == (later.priority, "127.0.0.1")
        assert early.deadline_s >= later.deadline_s > 0, "since the request came"
    assert dispatch.asked_early[1].share == compute(ARCH, STAGES, CEILINGS[-1])


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/classify?keep_ratio=7", (), 422),
        ("/v1/classify?keep_ratio=0.5&keep_ratio=0.6", (), 422),
        ("/v1/classify?nonsense=1", (), 422),
        ("/v1/nowhere", (), 404),
        ("/?function_to_apply=magic", (), 422),
        ("/?mask=grid", (), 422),
        ("/models/another", (), 404),
    ],
)
def test_what_nobody_could_answer_is_told_so_under_load_too(
    dispatch: FakeDispatch, connection: socket.socket, path: str, headers: tuple[str, ...], status: int
) -> None:
    """Coming again later would not help."""
    dispatch.refuses_early = LATE
    connection.sendall(head(path, *headers) + BODY)
    assert answer(connection)[0] == status
    assert dispatch.asked_early == []


def test_it_is_counted_as_a_request_that_was_read(
    dispatch: FakeDispatch, connection: socket.socket, metric: Callable[..., float]
) -> None:
    """Requests by route and status, refusals and images by reason."""
    samples = (
        ("trimvit_requests_total", {"route": "/v1/classify", "method": "POST", "status": "503"}),
        ("trimvit_request_seconds_count", {"route": "/v1/classify"}),
        ("trimvit_refusals_total", {"reason": "deadline-unmeetable"}),
        ("trimvit_images_total", {"outcome": "deadline-unmeetable"}),
    )
    before = [metric(name, **labels) for name, labels in samples]
    dispatch.refuses_early = LATE
    for _ in range(2):
        connection.sendall(head() + BODY)
        assert answer(connection)[0] == 503
    wanted = [count + 2 for count in before]
    until = time.monotonic() + WITHIN_S
    while (found := [metric(name, **labels) for name, labels in samples]) != wanted:
        assert time.monotonic() < until, f"{found}, not {wanted}"  # the last is counted behind its answer
        time.sleep(0.01)


def test_keys_go_before(tmp_path: Path) -> None:
    """Without a key nobody hears how much is waiting; the caller is the key's."""
    dispatch = FakeDispatch(refuses_early=LATE)
    keys = tmp_path / "keys"
    keys.write_text("me:0123456789abcdef0123456789abcdef\n")
    with serving(dispatch, api_keys_file=keys) as port, connected(port) as connection:
        connection.sendall(head())
        assert answer(connection)[0] == 401
        connection.sendall(BODY + head("/v1/classify", "X-API-Key: 0123456789abcdef0123456789abcdef"))
        assert answer(connection)[0] == 503
    assert [asked.caller for asked in dispatch.asked_early] == ["me"]


def test_while_no_worker_is_ready_requests_wait_as_before() -> None:
    """Nothing is known of the model, so nothing is refused by the head."""
    dispatch = FakeDispatch(refuses_early=LATE, model=None)
    with serving(dispatch) as port, connected(port) as connection:
        connection.sendall(head() + BODY)
        status, _, body = answer(connection)
    assert (status, json.loads(body)["type"]) == (503, "urn:trimvit:problem:not-ready")
    assert dispatch.asked_early == []
