"""One header of a request."""

from app.http.head import header_of


def test_the_first_value_counts_and_none_is_none() -> None:
    """Names are whole, and in small letters as ASGI has them."""
    scope = {"headers": [(b"host", b"one"), (b"host", b"two"), (b"x-caf", b"caf\xe9")]}
    assert header_of(scope, b"host") == "one"
    assert header_of(scope, b"x-caf") == "caf\xe9"
    assert header_of(scope, b"x") is None


def test_headers_that_are_replaced_are_read_again() -> None:
    """As middleware does that takes a coding off the body, for itself or in a copy of the scope."""
    scope = {"headers": [(b"content-encoding", b"gzip"), (b"host", b"one")]}
    assert header_of(scope, b"content-encoding") == "gzip"
    other = {**scope, "headers": [(b"host", b"two")]}
    assert header_of(other, b"content-encoding") is None
    assert header_of(other, b"host") == "two"
    assert header_of(scope, b"host") == "one"
