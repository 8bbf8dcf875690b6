"""How uvicorn is told to run the application: whose forwarded headers count, and on which listener."""

import pytest
from starlette.types import Receive, Scope, Send

from app.http.server.listeners import main_config, operations_config
from app.settings.settings import Settings

PROXY, CLIENT = "10.1.2.3", "203.0.113.9"


async def seen(settings: Settings, peer: str, headers: dict[str, str]) -> tuple[str, str]:
    """The client's address and the scheme, as the application sees them."""
    found: list[tuple[str, str]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found.append((scope["client"][0], scope["scheme"]))

    config = main_config(app, settings)
    config.load()
    scope = {
        "type": "http",
        "scheme": "http",
        "client": (peer, 1234),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    await config.loaded_app(scope, None, None)  # type: ignore[arg-type]
    return found[0]


@pytest.mark.anyio
@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", PROXY])
async def test_by_default_nobody_is_believed(peer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the own machine, nor whom uvicorn's own variable names."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    headers = {"X-Forwarded-For": CLIENT, "X-Forwarded-Proto": "https"}
    assert await seen(Settings(), peer, headers) == (peer, "http")


@pytest.mark.anyio
@pytest.mark.parametrize("named", [PROXY, "10.0.0.0/8", "192.0.2.1,10.1.2.3"])
async def test_a_named_proxy_is_believed_and_no_one_else(named: str) -> None:
    """By its address or its network; what the client itself wrote before is not believed."""
    settings = Settings(trusted_proxies=named)  # type: ignore[arg-type]
    headers = {"X-Forwarded-For": f"198.51.100.1, {CLIENT}", "X-Forwarded-Proto": "https"}
    for peer in (PROXY, f"::ffff:{PROXY}"):  # as a listener on :: names it
        assert await seen(settings, peer, headers) == (CLIENT, "https")
    assert await seen(settings, CLIENT, headers) == (CLIENT, "http")
    assert await seen(settings, "127.0.0.1", headers) == ("127.0.0.1", "http")


@pytest.mark.anyio
async def test_a_chain_of_named_proxies_is_followed_to_the_client() -> None:
    """The last address that is no named proxy's."""
    settings = Settings(trusted_proxies=("10.0.0.0/8",))
    for last in ("10.9.9.9", "::ffff:10.9.9.9"):
        assert (await seen(settings, PROXY, {"X-Forwarded-For": f"{CLIENT}, {last}"}))[0] == CLIENT


def test_operations_are_plain_and_believe_nobody() -> None:
    """Without TLS, without forwarded headers."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    config = operations_config(app, Settings())
    config.load()
    assert config.ssl is None
    assert config.loaded_app is app
