"""Behind a proxy that publishes the server under a path prefix, as nginx does: stripped and not."""

import re
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from app.main import create_app
from app.settings.settings import Settings
from tests.app.fakes import FakeDispatch, encoded

PREFIX = "/vit"
SITE = "http://example.org"


class Proxy:
    """nginx's `location /vit/ { proxy_pass ...; }`: all else is not the server's. With a slash at the end of
    proxy_pass the prefix is taken off, without one it is left on."""

    def __init__(self, app: ASGIApp, strips: bool) -> None:
        self._app, self._strips = app, strips

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if not path.startswith(PREFIX + "/") and not (path == PREFIX and not self._strips):
            await send({"type": "http.response.start", "status": 502, "headers": []})
            await send({"type": "http.response.body", "body": b"this is not the server's"})
            return
        if self._strips:
            path = path.removeprefix(PREFIX)
        await self._app({**scope, "path": path, "raw_path": path.encode()}, receive, send)


def behind(strips: bool, **settings: object) -> TestClient:
    chosen = Settings(**settings) if strips else Settings(root_path=PREFIX, **settings)  # type: ignore[arg-type]
    return TestClient(Proxy(create_app(chosen, FakeDispatch()), strips), base_url=SITE)


both_proxies = pytest.mark.parametrize("strips", [True, False], ids=["prefix taken off", "prefix left on"])


class _Loaded(HTMLParser):
    """The addresses that a page loads by itself."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.addresses += [value for name in ("src", "href") if (value := given.get(name)) and tag != "a"]


@both_proxies
@pytest.mark.parametrize("page", ["/", "/docs", "/docs/"])
def test_everything_that_a_page_loads_is_found(strips: bool, page: str) -> None:
    """Scripts, styles and pictures, and for /docs the OpenAPI document, all under the prefix."""
    client = behind(strips)
    response = client.get(PREFIX + page)
    assert response.status_code == 200
    addresses = _Loaded(response.text).addresses + re.findall(r"url: '([^']+)'", response.text)
    assert len(addresses) > 3
    for address in addresses:
        found = urljoin(str(response.url), address)
        assert urlsplit(found).path.startswith(PREFIX + "/"), address
        assert client.get(found).status_code == 200, address


@both_proxies
def test_the_document_names_the_server_by_a_relative_address(strips: bool) -> None:
    """What Swagger UI asks and what a generated client asks is right behind the prefix."""
    client = behind(strips)
    where = f"{SITE}{PREFIX}/openapi.json"
    document = client.get(where).json()
    (server,) = document["servers"]
    base = urljoin(where, server["url"]).rstrip("/")
    assert base == SITE + PREFIX
    assert client.post(f"{base}/v1/classify", content=encoded()).status_code == 200


@both_proxies
@pytest.mark.parametrize(("path", "found"), [("/docs/", "/docs"), ("/v1/models/", "/v1/models")])
def test_redirects_stay_under_the_prefix(strips: bool, path: str, found: str) -> None:
    """They are relative, so that neither the host nor the prefix that the proxy took off is missed."""
    client = behind(strips)
    response = client.get(PREFIX + path)
    assert (response.status_code, urlsplit(str(response.url)).path) == (200, PREFIX + found)


def test_with_the_prefix_left_on_requests_without_it_are_answered_too() -> None:
    """Probes come directly."""
    client = TestClient(create_app(Settings(root_path=PREFIX), FakeDispatch()), base_url=SITE)
    for path in ("/readyz", f"{PREFIX}/readyz", f"{PREFIX}/v2/health/ready"):
        assert client.get(path).status_code == 200
    for path in ("/vitreous", "/vitreadyz"):
        assert client.get(path).status_code == 404


def test_the_prefix_alone_is_redirected_to_the_page() -> None:
    """Its relative links start from the slash."""
    client = TestClient(create_app(Settings(root_path="/a/vit"), FakeDispatch()), base_url=SITE)
    response = client.get("/a/vit?keep_ratio=0.5", follow_redirects=False)
    assert (response.status_code, response.headers["Location"]) == (307, "vit/?keep_ratio=0.5")
    assert client.get("/a/vit").text.startswith("<!doctype html>")


@both_proxies
def test_errors_have_the_shape_of_their_route(strips: bool) -> None:
    """The prefix hides no protocol from what goes by the path."""
    client = behind(strips)
    assert set(client.get(f"{PREFIX}/v2/models/vit").json()) == {"error"}
    assert client.get(f"{PREFIX}/nothing").headers["Content-Type"] == "application/problem+json"


@both_proxies
def test_keys_are_asked_for_under_the_prefix(strips: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    """It opens nothing and closes nothing."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("alice:alice-0123456789")
    client = behind(strips, api_keys_file=keys)
    for path, status in (("/readyz", 200), ("/docs", 200), ("/v1/models", 401), ("/nothing", 401)):
        assert client.get(PREFIX + path).status_code == status, path
