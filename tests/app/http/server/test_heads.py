"""Heads that the parser lets through, and that cannot be answered all the same."""

import pytest

from app.errors import ExpectationFailed, HeadersTooLarge, MethodNotAllowed, Problem, UnreadableRequest
from app.http.server.heads import Headers, checked_head, without_offers

HOST = (b"host", b"localhost:8000")


def checked(
    *headers: tuple[bytes, bytes], method: str = "POST", version: str = "1.1", target: bytes = b"/x"
) -> tuple[bytes, Headers]:
    return checked_head(method, version, target, list(headers))


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"LOCALHOST:8000",
        b"127.0.0.1:80",
        b"[::1]:8000",
        b"[fe80::1%25eth0]",
        b"a_b.example",
        b"",
        b"x:",
    ],
)
def test_hosts_with_and_without_a_port_are_taken(host: bytes) -> None:
    """Names, addresses, and nothing, which HTTP allows."""
    assert checked((b"host", host)) == (b"/x", [(b"host", host)])


def test_http_1_0_needs_no_host() -> None:
    """As in RFC 9112."""
    assert checked(version="1.0") == (b"/x", [])


@pytest.mark.parametrize(
    ("headers", "options", "problem", "words"),
    [
        ([], {}, UnreadableRequest, "needs a Host header"),
        ([HOST, HOST], {}, UnreadableRequest, "more than one Host"),
        ([(b"host", b"a b")], {}, UnreadableRequest, "not 'a b'"),
        ([(b"host", b"user@here")], {}, UnreadableRequest, "not 'user@here'"),
        ([(b"host", b"here/path")], {}, UnreadableRequest, "such as localhost:8000"),
        ([(b"host", b"here:port")], {}, UnreadableRequest, "such as localhost:8000"),
        ([HOST, (b"transfer-encoding", b"gzip, chunked")], {}, UnreadableRequest, "Content-Encoding"),
        ([HOST, (b"transfer-encoding", b"chunked")] * 2, {}, UnreadableRequest, "more than one Host"),
        ([(b"transfer-encoding", b"chunked")], {"version": "1.0"}, UnreadableRequest, "use Content-Length"),
        ([HOST, (b"expect", b"200-ok")], {}, ExpectationFailed, "must be 100-continue, not '200-ok'"),
        ([HOST], {"version": "2.0"}, UnreadableRequest, "not HTTP/2.0"),
        ([HOST], {"version": "0.9"}, UnreadableRequest, "not HTTP/0.9"),
        ([HOST], {"method": "CONNECT", "target": b"here:443"}, MethodNotAllowed, "not a proxy"),
        ([HOST], {"target": b"/" + b"x" * 65_535}, HeadersTooLarge, "65535 bytes"),
        ([HOST], {"target": b"rtsp://here/x"}, UnreadableRequest, "must begin with /"),
        ([HOST], {"target": b"*"}, UnreadableRequest, "must begin with /"),
        ([HOST], {"target": b"http://a b/x"}, UnreadableRequest, "not 'a b'"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_in_words(
    headers: Headers, options: dict[str, object], problem: type[Problem], words: str
) -> None:
    """Each with its status; servers might disagree about what such a request means."""
    with pytest.raises(problem, match=words.replace("/", r"\/")):
        checked(*headers, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [b"100-continue", b"100-Continue"])
def test_a_client_may_wait_for_leave_to_send(value: bytes) -> None:
    """In capitals or not."""
    assert checked(HOST, (b"expect", value))[0] == b"/x"


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (b"http://here:8000/x?y=1", b"/x?y=1", b"here:8000"),
        (b"HTTPS://[::1]/x", b"/x", b"[::1]"),
        (b"http://here", b"/", b"here"),
        (b"http://here?y=1", b"/?y=1", b"here"),
    ],
)
def test_an_absolute_target_names_path_and_host(target: bytes, path: bytes, host: bytes) -> None:
    """As proxies send it; the Host header beside it does not count."""
    found, headers = checked((b"host", b"elsewhere"), (b"x-other", b"1"), target=target)
    assert found == path
    assert headers == [(b"x-other", b"1"), (b"host", host)]


def test_options_may_ask_about_the_whole_server() -> None:
    """OPTIONS * is a request."""
    assert checked(HOST, method="OPTIONS", target=b"*")[0] == b"*"


def test_a_head_without_its_offers_is_otherwise_the_same() -> None:
    """Order, doubles and bytes beyond ASCII stay."""
    headers = [HOST, (b"upgrade", b"h2c"), (b"x-a", b"1"), (b"http2-settings", b"AA"), (b"x-a", b"\xe9")]
    assert without_offers(b"POST", b"/x?y", "1.1", headers) == (
        b"POST /x?y HTTP/1.1\r\nhost: localhost:8000\r\nx-a: 1\r\nx-a: \xe9\r\n\r\n"
    )
