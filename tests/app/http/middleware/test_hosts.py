"""The names that a server is asked by."""

from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.http.middleware.hosts import Hosts, answered_hosts
from app.main import create_app, create_operations_app
from app.settings.settings import Settings
from tests.app.fakes import FakeDispatch, encoded
from tests.app.http.problem import assert_problem
from tests.app.http.wire import answer, wire

LOCAL = [
    "localhost", "localhost:8000", "LOCALHOST:1", "localhost.", "app.localhost:8000", "127.0.0.1",
    "127.0.0.1:8000", "127.8.9.10", "127.1", "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]:8000", "[::1%25lo]", "",
]  # fmt: skip
FOREIGN = [
    "evil.test", "evil.test:8000", "localhost.evil.test", "127.0.0.1.evil.test", "notlocalhost",
    "evil.localhost.test", "10.0.0.1", "0.0.0.0:8000", "[2001:db8::1]:8000", "[::ffff:10.0.0.1]",
    "1270.0.0.1", "xn--lcalhost-t4a",
]  # fmt: skip


@pytest.mark.parametrize("host", LOCAL)
def test_names_of_this_machine_are_answered(host: str) -> None:
    """With any port; and who names none is no browser."""
    assert Hosts().answers(host)


@pytest.mark.parametrize("host", FOREIGN)
def test_other_names_are_not(host: str) -> None:
    """Nor what merely looks like a local one."""
    assert not Hosts().answers(host)


def test_named_hosts_are_answered() -> None:
    """In any letters, alone, with all names below them, or all there are."""
    hosts = Hosts(("ViT.example.org", "*.test"))
    for host in ("vit.example.org", "VIT.EXAMPLE.ORG:443", "a.test", "a.b.test", "localhost"):
        assert hosts.answers(host), host
    for host in ("example.org", "a.vit.example.org", "test", "nottest", "10.0.0.1"):
        assert not hosts.answers(host), host
    assert Hosts(("*",)).answers("evil.test")


@pytest.mark.parametrize("listening_on", ["127.0.0.1", "127.0.0.5", "localhost", "::1"])
def test_only_a_server_without_keys_that_this_machine_alone_reaches_asks_for_local_names(
    listening_on: str,
) -> None:
    """Elsewhere whoever asks has a key, or reached it over a network under whatever name it has there."""
    assert not answered_hosts(listening_on, None, with_keys=False).answers("evil.test")
    assert answered_hosts(listening_on, None, with_keys=True).answers("evil.test")
    for elsewhere in ("0.0.0.0", "::", "10.0.0.1", "2001:db8::1", "my-machine"):
        assert answered_hosts(elsewhere, None, with_keys=False).answers("evil.test")


def test_hosts_that_are_named_are_the_only_ones_everywhere() -> None:
    """With keys or on a network too; there addresses stay, which probes use."""
    hosts = answered_hosts("0.0.0.0", ["vit.example.org"], with_keys=True)
    assert hosts.answers("vit.example.org")
    assert hosts.answers("10.1.2.3:8000")
    assert not hosts.answers("evil.test")
    assert not answered_hosts("127.0.0.1", ["vit.example.org"], with_keys=True).answers("10.1.2.3")


@pytest.mark.parametrize("path", ["/", "/livez", "/v1/models", "/metrics", "/nowhere", "/static/x/page.js"])
def test_a_request_for_another_host_is_refused_in_words(path: str) -> None:
    """With 421, whatever it asks for; the words name the setting."""
    client = TestClient(create_app(Settings(), FakeDispatch(), listening_on="127.0.0.1"))
    response = client.get(path, headers={"Host": "evil.test:8000"})
    if path == "/":
        assert response.status_code == 421
        assert "--allowed-hosts evil.test" in response.json()["error"]
    else:
        assert_problem(response, 421, "misdirected-request", "'evil.test'", "--allowed-hosts evil.test")  # type: ignore[arg-type]
    assert response.headers["X-Request-ID"]
    assert client.get("/livez", headers={"Host": "localhost:8000"}).status_code == 200


def test_with_keys_or_without_an_address_every_host_is_answered(
    make_client: Callable[..., TestClient], tmp_path: Path
) -> None:
    """As before a proxy, in Ray, and in tests."""
    assert make_client().get("/livez", headers={"Host": "evil.test"}).status_code == 200
    (tmp_path / "keys").write_text("alice:alice-0123456789")
    app = create_app(Settings(api_keys_file=tmp_path / "keys"), FakeDispatch(), listening_on="127.0.0.1")
    assert TestClient(app).get("/livez", headers={"Host": "evil.test"}).status_code == 200


def test_the_operations_port_is_asked_by_its_own_address() -> None:
    """It has no keys."""
    client = TestClient(create_operations_app(None, Hosts()))  # type: ignore[arg-type]
    assert client.get("/livez", headers={"Host": "evil.test"}).status_code == 421
    assert client.get("/livez", headers={"Host": "localhost:9000"}).status_code == 200


def test_over_a_socket_the_target_names_the_host_as_well() -> None:
    """An absolute target counts, and not the Host header beside it."""
    with wire() as server:
        foreign = b"GET /livez HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n"
        assert answer(server.say(foreign)).status == 421
        foreign = b"GET http://evil.test/livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert "--allowed-hosts" in answer(server.say(foreign)).detail
        image = encoded()
        post = b"POST /v1/classify HTTP/1.1\r\nHost: evil.test\r\nContent-Length: %d\r\n" % len(image)
        assert answer(server.say(post + b"Connection: close\r\n\r\n" + image)).status == 421
        assert server.dispatch.questions == []


@pytest.mark.parametrize(
    "wrong", ["http://here", "here:8000", "here/path", "", "a b", "*.", "*x", "**", "here,,there"]
)
def test_what_is_no_name_is_refused_at_the_start(wrong: str) -> None:
    """With an example."""
    with pytest.raises(ValueError, match=r"vit\.example\.org"):
        Settings(allowed_hosts=wrong)  # type: ignore[arg-type]
