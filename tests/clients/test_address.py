"""The address of a server and the way to it: of the client, and of `trimvit bench`, which has a copy."""

from pathlib import Path
from types import ModuleType

import httpx
import pytest
import trimvit_client.address
from trimvit_client import AsyncClient, Client

import app.commands.address

PROXY = "http://proxy.example:3128"
both = pytest.mark.parametrize(
    "address", [trimvit_client.address, app.commands.address], ids=["client", "bench"]
)


def test_the_copies_are_the_same() -> None:
    """What is mended in one is mended in the other."""
    one, other = (
        Path(str(module.__file__)).read_text() for module in (trimvit_client.address, app.commands.address)
    )
    assert one == other


@both
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000",
        "https://vit.example.org",
        "http://[::1]:8000",
        "http://vit.example.org/behind/a/prefix",
    ],
)
def test_an_address_is_taken_with_a_slash_and_without(address: ModuleType, url: str) -> None:
    """A path before the server's own is part of it."""
    assert address.server_url(url) == address.server_url(f"{url}/") == url


@both
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("127.0.0.1:8000", r"did you mean http://127.0.0.1:8000\?"),
        ("localhost", r"did you mean http://localhost\?"),
        ("", "such as http://127.0.0.1:8000; got ''"),
        ("http://", "must be a URL"),
        ("http:///v1", "must be a URL"),
        ("http://127.0.0.1:80000", "must be a URL"),
        ("http://[::1", "must be a URL"),
        ("ftp://127.0.0.1", "must be a URL"),
        ("http://127.0.0.1:8000/v1/classify", "leave out /v1/classify"),
        ("http://127.0.0.1:8000/docs/", "leave out /docs"),
        ("http://127.0.0.1:8000/?keep_ratio=0.5", "without options"),
    ],
)
def test_what_is_no_address_is_refused_with_what_to_write(address: ModuleType, text: str, words: str) -> None:
    """Before anything is sent."""
    with pytest.raises(ValueError, match=words):
        address.server_url(text)


@both
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000", "http://127.8.9.10", "http://localhost", "https://localhost:8443",
        "http://vit.localhost", "http://[::1]:8000", "http://[::ffff:127.0.0.1]", "http://0.0.0.0:8000",
    ],
)  # fmt: skip
def test_an_address_of_this_machine_is_asked_without_a_proxy(address: ModuleType, url: str) -> None:
    """Whatever the environment says; a proxy has another 127.0.0.1."""
    assert address.proxy_for(httpx.URL(url), {"http": PROXY, "https": PROXY, "all": PROXY}) is None


@both
@pytest.mark.parametrize(
    ("url", "proxies", "proxy"),
    [
        ("http://192.0.2.1", {"http": PROXY}, PROXY),
        ("https://192.0.2.1", {"http": PROXY}, None),
        ("https://192.0.2.1", {"all": "socks5://proxy.example"}, "socks5://proxy.example"),
        ("http://vit.invalid", {"http": "proxy.example:3128"}, PROXY),
        ("http://192.0.2.1", {}, None),
    ],
)
def test_another_machine_is_asked_through_the_proxy(
    address: ModuleType, url: str, proxies: dict[str, str], proxy: str | None
) -> None:
    """That of the scheme, else that of all; one without a scheme speaks HTTP."""
    assert address.proxy_for(httpx.URL(url), proxies) == proxy


@both
@pytest.mark.parametrize(
    ("url", "exceptions", "direct"),
    [
        ("http://192.0.2.1", "192.0.2.1", True),
        ("http://192.0.2.1", "10.0.0.0/8, 192.0.2.0/24", True),
        ("http://192.0.2.1", "10.0.0.0/8", False),
        ("http://192.0.2.1", "*", True),
        ("http://192.0.2.1:8000", "192.0.2.1:8000", True),
        ("http://192.0.2.1:8001", "192.0.2.1:8000", False),
        ("http://192.0.2.1", "192.0.2.1:80", True),
        ("http://[2001:db8::1]:8000", "2001:db8::/32", True),
        ("http://[2001:db8::1]:8000", "[2001:db8::1]:8000", True),
        ("http://a.b.invalid", "B.invalid", True),
        ("http://a.b.invalid", ".b.invalid", True),
        ("http://a.b.invalid", "*.b.invalid", True),
        ("http://ab.invalid", "b.invalid", False),
        ("http://a.invalid", "", False),
    ],
)
def test_no_proxy_is_understood_in_every_form(
    address: ModuleType, url: str, exceptions: str, direct: bool
) -> None:
    """Names, domains, networks, ports, with commas or blanks."""
    found = address.proxy_for(httpx.URL(url), {"http": PROXY, "no": exceptions})
    assert found == (None if direct else PROXY)


@both
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate"),
            "set SSL_CERT_FILE=FILE",
        ),
        (
            httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number"),
            "use http:// instead of https://",
        ),
        (httpx.RemoteProtocolError("illegal status line"), "if it uses TLS, write https://"),
        (httpx.ConnectError("All connection attempts failed"), "All connection attempts failed"),
        (httpx.ReadError(""), "ReadError"),
    ],
)
def test_why_a_server_is_not_reached_is_told(address: ModuleType, error: Exception, words: str) -> None:
    """With what to do about it."""
    assert words in address.why(error)


def test_the_clients_go_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that nothing can be made of keeps nobody from asking this machine."""
    monkeypatch.setenv("HTTP_PROXY", "socks9://nowhere")
    monkeypatch.setenv("ALL_PROXY", "socks9://nowhere")
    with Client("http://127.0.0.1:9") as client:
        assert not client.is_ready()
    AsyncClient("http://localhost:9")
    with pytest.raises(ValueError, match="socks9"):
        Client("http://192.0.2.1")
    with pytest.raises(ValueError, match="did you mean http://localhost:8000"):
        Client("localhost:8000")
