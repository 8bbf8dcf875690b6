"""Whose address counts, and in which form."""

import pytest

from app.http.server.forwarded import UNKNOWN, sound_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        (" 203.0.113.9 ", "203.0.113.9"),
        ("2001:DB8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:db8:0:0::1", "2001:db8::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("fe80::1%eth0", "fe80::1"),
        ("unknown", UNKNOWN),
        ("_hidden", UNKNOWN),
        ("", UNKNOWN),
        ("203.0.113.9, 10.0.0.1", UNKNOWN),
        ("203.0.113.9:port", UNKNOWN),
        ("client.example.org", UNKNOWN),
        ("x" * 60_000, UNKNOWN),
    ],
)
def test_an_address_has_one_form(text: str, address: str) -> None:
    """What is none is nobody's: whoever invents names gets no share of the workers for each."""
    assert sound_address(text) == address
