"""Error messages for bytes that are not a valid HTTP request. Pure functions."""

import re

from app.errors import Problem, UnreadableRequest

# Number of first bytes that identify other protocols on an HTTP port.
OPENING = 24
_TLS_HANDSHAKE = re.compile(rb"\x16\x03[\x00-\x04]|\x80.\x01\x03", re.DOTALL)
_PROXY_PROTOCOL = (b"PROXY ", b"\r\n\r\n\x00\r\nQUIT\n")
_SIMPLE = re.compile(rb"[A-Z]+ [^ \r\n]+\r?\n")
_METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH")
_METHOD = re.compile(rb"([A-Za-z-]{1,20}) ")

# Errors by the parser's message; the first match is used.
_WORDS = (
    ("PRI", "this server supports HTTP/1.1, but not HTTP/2 without TLS (with curl: --http1.1)"),
    ("Duplicate Content-Length", "the request has more than one Content-Length header; send only one"),
    (
        "present with",
        "the request has both Content-Length and Transfer-Encoding, which servers may interpret "
        "differently; send only one",
    ),
    ("Content-Length overflow", "Content-Length is larger than any possible body"),
    (
        "Content-Length",
        "Content-Length must be the number of bytes of the body in decimal digits, such as 1024",
    ),
    ("Transfer-Encoding", "Transfer-Encoding must be 'chunked' and given only once"),
    ("chunk data", "a chunk of the body is longer or shorter than its announced size"),
    (
        "hunk",
        "a chunk of the body must begin with its size in hexadecimal digits, such as 1f40, on a line that "
        "ends with CR LF",
    ),
    ("after header value", "a header must be on one line that ends with CR LF"),
    ("header value", "a header value contains a control character; NUL, CR and LF are not allowed"),
    ("header", "a header must have the form 'Name: value', without spaces in or after its name"),
    ("CRLF", "header lines must end with CR LF, not with LF alone"),
    ("Missing expected", "header lines must end with CR LF"),
    ("version", "the request line must end with HTTP/1.1 or HTTP/1.0"),
    ("dot", "the request line must end with HTTP/1.1 or HTTP/1.0"),
    (
        "HTTP/",
        "the request line must be 'METHOD /path HTTP/1.1'; spaces in the path or the query must be "
        "encoded as %20",
    ),
    (
        "url",
        "the request target must begin with / and be ASCII; other characters must be percent-encoded as "
        "UTF-8, such as %C3%BC",
    ),
)


def is_simple_request(data: bytes) -> bool:
    """Whether this is a request of HTTP/0.9, which has no headers."""
    return _SIMPLE.fullmatch(data) is not None


def unreadable(reason: str, opening: bytes) -> Problem:
    """The problem for a request that the parser refuses for ``reason``. ``opening``: its first bytes."""
    return UnreadableRequest(_foreign(opening) or _of_parser(reason))


def _foreign(opening: bytes) -> str | None:
    """The error message for another protocol, or for an unknown method."""
    if _TLS_HANDSHAKE.match(opening):
        return "this port only accepts plain HTTP, but the client used TLS; use http:// instead of https://"
    if opening.startswith(_PROXY_PROTOCOL):
        return (
            "the PROXY protocol is not supported; let the proxy send X-Forwarded-For, and name the proxy "
            "in --trusted-proxies"
        )
    found = _METHOD.match(opening)
    if found is None or found[1] in (*_METHODS, b"PRI"):
        return None
    if found[1].upper() in _METHODS:
        return f"methods must be in upper case: {found[1].decode().upper()}, not {found[1].decode()}"
    return f"{found[1].decode()} is not a supported method; the API supports GET, HEAD, POST and OPTIONS"


def _of_parser(reason: str) -> str:
    for part, words in _WORDS:
        if part in reason:
            return words
    if "method" in reason:
        return (
            "this port only accepts HTTP/1.1; a request begins with its method, as in 'GET /livez HTTP/1.1'"
        )
    return f"the request is not valid HTTP/1.1 ({reason})"
