"""Checks of a request's head in addition to those of the parser: pure functions, which raise a Problem."""

import re
from collections.abc import Sequence

from app.errors import ExpectationFailed, HeadersTooLarge, MethodNotAllowed, UnreadableRequest

Headers = list[tuple[bytes, bytes]]

_LONGEST_TARGET = 65_535  # the parser's limit
_VERSIONS = ("1.0", "1.1")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]*)(.*)", re.DOTALL)
# A host name, an IPv4 address or an IPv6 address in brackets, with an optional port.
_HOST = re.compile(rb"([A-Za-z0-9._~%-]*|\[[0-9A-Fa-f:.%A-Za-z]+\])(:[0-9]{0,5})?")
# Headers that offer another protocol for the connection. The offer is ignored.
_OFFERS = frozenset({b"upgrade", b"http2-settings"})


def checked_head(method: str, version: str, target: bytes, headers: Headers) -> tuple[bytes, Headers]:
    """The target in origin form, and the headers with the host of the target, if it has one.

    Raises a Problem for a head that cannot be answered, or that servers might understand differently.
    """
    if version not in _VERSIONS:
        raise UnreadableRequest(f"this server supports HTTP/1.1 and HTTP/1.0, not HTTP/{version}")
    if method == "CONNECT":
        raise MethodNotAllowed(
            "this server is not a proxy and does not support CONNECT; send GET or POST requests to it "
            "directly"
        )
    if len(target) > _LONGEST_TARGET:
        raise HeadersTooLarge(f"the request target may have at most {_LONGEST_TARGET} bytes")
    # Proxies send the absolute form; its host takes precedence (RFC 9112, section 3.2.2).
    if not target.startswith(b"/") and (found := _ABSOLUTE.fullmatch(target)):
        host, target = found.groups()
        target = target if target.startswith(b"/") else b"/" + target
        headers = [*((name, value) for name, value in headers if name != b"host"), (b"host", host)]
    if not target.startswith(b"/") and (method, target) != ("OPTIONS", b"*"):
        raise UnreadableRequest(f"the request target must begin with /, such as /livez; got {_shown(target)}")
    _check_host(version, _values(headers, b"host"))
    _check_transfer_encoding(version, _values(headers, b"transfer-encoding"))
    for value in _values(headers, b"expect"):
        if value.lower() != b"100-continue":
            raise ExpectationFailed(f"Expect must be 100-continue, not {_shown(value)}")
    return target, headers


def head_bytes(target: bytes, headers: Headers) -> int:
    """The size of a head without its method, its version and meaningless blanks."""
    return len(target) + sum(len(name) + len(value) + 4 for name, value in headers)  # ": " and CR LF


def without_offers(method: bytes, target: bytes, version: str, headers: Headers) -> bytes:
    """The head as a client without Upgrade would send it."""
    kept = [name + b": " + value for name, value in headers if name not in _OFFERS]
    line = b"%s %s HTTP/%s" % (method, target, version.encode())
    return b"\r\n".join([line, *kept]) + b"\r\n\r\n"


def _check_host(version: str, hosts: Sequence[bytes]) -> None:
    """RFC 9112, section 3.2."""
    if len(hosts) > 1:
        raise UnreadableRequest("the request has more than one Host header; send only one")
    if not hosts and version == "1.1":
        raise UnreadableRequest("an HTTP/1.1 request needs a Host header, such as 'Host: localhost:8000'")
    if hosts and not _HOST.fullmatch(hosts[0].strip()):
        raise UnreadableRequest(
            f"Host must be a name or an address, such as localhost:8000, not {_shown(hosts[0])}"
        )


def _check_transfer_encoding(version: str, codings: Sequence[bytes]) -> None:
    """RFC 9112, section 6.1: what the parser accepts, but a proxy in front may understand differently."""
    if codings and version == "1.0":
        raise UnreadableRequest(
            "HTTP/1.0 does not support Transfer-Encoding; use Content-Length, or HTTP/1.1"
        )
    if codings and [coding.strip().lower() for coding in codings] != [b"chunked"]:
        raise UnreadableRequest(
            f"Transfer-Encoding must be 'chunked', not {_shown(b', '.join(codings))}; for a compressed "
            "body, use Content-Encoding"
        )


def _values(headers: Headers, wanted: bytes) -> list[bytes]:
    return [value for name, value in headers if name == wanted]


def _shown(value: bytes) -> str:
    text = value[:100].decode("ascii", "backslashreplace")
    return repr(text) + ("..." if len(value) > len(text) else "")
