"""One header of a request."""

from app.http.head import header_of


def test_the_first_value_counts_and_none_is_none() -> None:
    """Names are whole, and in small letters as ASGI has them."""
    scope = {"headers": [(b"host", b"one"), (b"host", b"two"), (b"x-caf", b"caf\xe9")]}
    assert header_of(scope, b"host") == "one"
    assert header_of(scope, b"x-caf") == "caf\xe9"
    assert header_of(scope, b"x") is None
