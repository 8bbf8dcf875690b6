"""Checks the Host header, which protects against DNS rebinding.

With DNS rebinding, the name of a page at evil.example resolves to 127.0.0.1. The browser then treats page and
server as one origin, so neither CORS nor a firewall blocks its requests. They still have `Host:
evil.example`.
"""

import socket
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import MisdirectedRequest
from app.http.clients import unmapped
from app.http.head import header_of
from app.http.problems import problem_response

_ANY = "*"


@dataclass(frozen=True, slots=True)
class Hosts:
    """The hosts that are answered: those of this machine and ``also``, in which `*.example.org` stands for
    all names below example.org and `*` for every host. ``addresses``: also every address, as for a server
    that listens on a network. A page cannot have the origin of an address that is not its own."""

    also: tuple[str, ...] = ()
    addresses: bool = False

    @lru_cache(256)  # noqa: B019 - there is one for the life of the process
    def answers(self, host: str) -> bool:
        """Whether requests with this Host header are answered."""
        name = _name(host)
        # Browsers always send a host name.
        if name == "" or _ANY in self.also or name == "localhost" or name.endswith(".localhost"):
            return True
        address = _address(name)
        if address is not None and (self.addresses or address.is_loopback):
            return True
        return any(
            name.endswith(given[1:]) if given.startswith("*.") else name == given
            for given in map(str.lower, self.also)
        )


def answered_hosts(listening_on: str, also: Sequence[str] | None, *, with_keys: bool) -> Hosts:
    """The hosts for a server that listens on this address. If no host is configured, every host is answered,
    except by a server that only this machine can reach and that requires no keys."""
    loopback = _is_loopback(listening_on)
    if also is None:
        return Hosts() if loopback and not with_keys else Hosts((_ANY,))
    return Hosts(tuple(also), addresses=not loopback)


class AnswerHosts:
    """Refuses requests for other hosts with 421."""

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self._app = app
        self._hosts = hosts

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Pass on, or refuse."""
        host = (header_of(scope, b"host") or "") if scope["type"] == "http" else ""
        if self._hosts.answers(host):
            return self._app(scope, receive, send)
        name = _name(host)[:100]
        problem = MisdirectedRequest(
            f"this server does not serve the host {name!r}; use localhost or, if this is one of its "
            f"names, start it with --allowed-hosts {name}"
        )
        return problem_response(problem, scope["path"])(scope, receive, send)


def _is_loopback(listening_on: str) -> bool:
    name = _name(f"[{listening_on}]" if ":" in listening_on else listening_on)
    address = _address(name)
    return name == "localhost" or name.endswith(".localhost") or (address is not None and address.is_loopback)


def _name(host: str) -> str:
    """The host in lower case, without port, brackets, zone and trailing dot."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0].partition("%")[0]
    return host.partition(":")[0].removesuffix(".")


def _address(name: str) -> IPv4Address | IPv6Address | None:
    """The address, also in the short forms that clients accept, such as 127.1."""
    try:
        address = ip_address(name if ":" in name else socket.inet_ntoa(socket.inet_aton(name)))
    except (OSError, ValueError):
        return None
    return unmapped(address)
