"""The address of a server, connections to it, and why it cannot be reached.

The client and `trimvit bench` are separate packages and have a copy each; a test keeps them the same.
"""

import re
import socket
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.request import getproxies

import httpx

_EXAMPLE = "http://127.0.0.1:8000"


def server_url(text: str) -> str:
    """The address without a slash at its end. Raises ValueError if it is not a URL; the text says what to
    write."""
    what = f"the address of the server must be a URL, such as {_EXAMPLE}; got {text!r}"
    if not re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        raise ValueError(f"{what}; did you mean http://{text}?" if text else what)
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"{what}: {error}") from error
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65535:
        raise ValueError(what)
    if url.query or url.fragment:
        raise ValueError(f"{what}, without options")
    if found := re.search(r"/(v1/\w+|v2|predict|livez|readyz|metrics|docs)/?$", url.path):
        raise ValueError(f"{what}: leave out {found[0]}")
    return text.rstrip("/")


def connecting(url: str, proxies: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The arguments of an httpx client for the server. An address of this machine gets no proxy; others get
    the one that the environment names (by default: of this process)."""
    return {
        "proxy": proxy_for(httpx.URL(url), getproxies() if proxies is None else proxies),
        "trust_env": False,  # the proxies are chosen here
        "verify": httpx.create_ssl_context(),  # respects SSL_CERT_FILE and SSL_CERT_DIR
    }


def proxy_for(url: httpx.URL, proxies: Mapping[str, str]) -> str | None:
    """The proxy for the server, from ``proxies`` by scheme as urllib's getproxies returns them."""
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or _is_excepted(url, proxies.get("no", "")) or _is_local(url.host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_local(host: str) -> bool:
    """Whether the host is this machine, by whatever name."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        addresses = {str(each[4][0]) for each in socket.getaddrinfo(host, None)}
    except OSError:  # maybe only the proxy can resolve the name
        return False
    return all(_is_loopback(address) for address in addresses)


def _is_loopback(text: str) -> bool:
    address = ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None) or address
    return mapped.is_loopback or mapped.is_unspecified


def _is_excepted(url: httpx.URL, exceptions: str) -> bool:
    """Whether NO_PROXY names the host: the host itself, its domain, its network, its port, or everything."""
    for text in re.split(r"[\s,]+", exceptions.lower()):
        if text == "*":
            return True
        name, port = text, None
        if found := re.fullmatch(r"(\[.*\]|[^:]*):(\d+)", text):
            name, port = found[1], int(found[2])
        name = name.strip("[]").removeprefix("*").removeprefix(".")
        own_port = url.port or {"http": 80, "https": 443}[url.scheme]
        if name and port in (None, own_port) and _is_in(url.host, name):
            return True
    return False


def _is_in(host: str, name: str) -> bool:
    if host == name or host.endswith(f".{name}"):
        return True
    try:
        return ip_address(host) in ip_network(name, strict=False)
    except ValueError:
        return False


def why(error: Exception) -> str:
    """Why the server could not be reached, and what to do about it."""
    text = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"its certificate is not trusted; to trust it, set SSL_CERT_FILE=FILE ({text})"
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        return f"it does not support TLS; use http:// instead of https:// ({text})"
    if isinstance(error, httpx.RemoteProtocolError):
        return f"it does not respond with HTTP; if it uses TLS, write https:// ({text})"
    return text
