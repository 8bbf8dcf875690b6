"""The client's address behind a proxy: checks what uvicorn takes from X-Forwarded-For.

The address decides whose share of the workers a request uses, so what is not an address must not count as
another caller.
"""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.clients import unmapped

UNKNOWN = "unknown"  # as in RFC 7239
_MAPPED = IPv6Address("::ffff:0.0.0.0")  # IPv4-mapped IPv6 addresses (RFC 4291, 2.5.5.2)


class SoundClient:
    """Normalizes the client's address. It is UNKNOWN if a proxy named none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        if scope.get("client") is not None:
            address, port = scope["client"]
            scope["client"] = (sound_address(address), port)
        await self._app(scope, receive, send)


def sound_address(text: str) -> str:
    """An address without a zone. An IPv4 address in IPv6 form becomes IPv4."""
    try:
        address = ip_address(text.strip().strip("[]").partition("%")[0])
    except ValueError:
        return UNKNOWN
    return str(unmapped(address))


def in_both_forms(proxies: Sequence[str]) -> list[str]:
    """The proxies, and each IPv4 one in IPv6's form too: so a listener on :: names its IPv4 clients."""
    networks = [ip_network(proxy) for proxy in proxies]
    mapped = [
        str(IPv6Network((int(_MAPPED) + int(network.network_address), 96 + network.prefixlen)))
        for network in networks
        if isinstance(network, IPv4Network)
    ]
    return [*proxies, *mapped]
