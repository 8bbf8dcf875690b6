"""Words for what is no HTTP request."""

import pytest

from app.http.server.unreadable import OPENING, is_simple_request, unreadable

INVALID_METHOD = "Invalid method encountered"


@pytest.mark.parametrize(
    ("opening", "words"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "use http:// instead of https://"),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 5 80\r\n", "name the proxy in --trusted-proxies"),
        (b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c", "name the proxy in --trusted-proxies"),
        (b"get /livez HTTP/1.1\r\n", "in upper case: GET, not get"),
        (b"BREW /pot HTTP/1.1\r\n", "BREW is not a supported method"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "begins with its method"),
        (b"*1\r\n$4\r\nPING\r\n", "begins with its method"),
        (b"\xff\xd8\xff\xe0", "begins with its method"),
    ],
)
def test_other_protocols_are_told_by_their_first_bytes(opening: bytes, words: str) -> None:
    """What the client should do instead."""
    problem = unreadable(INVALID_METHOD, opening[:OPENING])
    assert problem.status == 400
    assert words in problem.detail


def test_an_unknown_reason_is_passed_on() -> None:
    """A newer parser may have others."""
    assert "(Strange thing)" in unreadable("Strange thing", b"GET / HTTP/1.1").detail


@pytest.mark.parametrize(
    ("data", "simple"),
    [
        (b"GET /livez\r\n", True),
        (b"GET /livez\n", True),
        (b"GET /livez HTTP/1.1\r\n", False),
        (b"GET /livez", False),
        (b"GET /livez\r\nHost: here\r\n", False),
    ],
)
def test_a_request_line_without_a_version_is_told(data: bytes, simple: bool) -> None:
    """HTTP/0.9 has no headers to wait for."""
    assert is_simple_request(data) == simple
