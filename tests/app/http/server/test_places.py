"""Who may have how many connections."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.http.server.places import Places


def taken(places: Places, address: str, times: int) -> str | None:
    for _ in range(times):
        places.take(address)
    return places.trouble(address)


def test_all_together_have_so_many_and_no_more() -> None:
    """Whoever they are."""
    places = Places(4)
    for number in range(4):
        assert taken(places, f"10.0.0.{number}", 1) is None
    assert taken(places, "10.0.0.9", 1) == "the limit of 4 connections is reached; retry later"
    places.leave("10.0.0.9")
    assert repr(places) == "4 of 4 connections, by 4 clients"


def test_one_client_alone_has_three_quarters() -> None:
    """The rest is for the others; a place that is left is free."""
    places = Places(100)
    assert taken(places, "10.0.0.1", 75) is None
    assert (
        taken(places, "10.0.0.1", 1) == "the limit of 75 connections from 10.0.0.1 is reached; close "
        "some or retry later"
    )
    assert taken(places, "10.0.0.2", 1) is None
    places.leave("10.0.0.1")
    assert places.trouble("10.0.0.1") is None


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "10.1.2.3", "", "::ffff:127.0.0.1", "::ffff:10.1.2.3"]
)
def test_this_machine_and_proxies_may_have_all(address: str) -> None:
    """All clients of a proxy come from its address."""
    places = Places(100, None, ["10.0.0.0/8"])
    assert taken(places, address, 100) is None
    assert taken(places, address, 1) is not None


def test_a_limit_that_is_set_holds_for_this_machine_too() -> None:
    """And for no proxy."""
    places = Places(100, 3, ["10.1.2.3"])
    assert (
        taken(places, "127.0.0.1", 4) == "the limit of 3 connections from 127.0.0.1 is reached; close "
        "some or retry later"
    )
    assert taken(places, "10.1.2.3", 4) is None


def test_a_network_of_ipv6_is_one_client() -> None:
    """It has more addresses than there are places; an IPv4 address in IPv6's form is itself."""
    places = Places(100, 3)
    assert taken(places, "2001:db8::1", 2) is None
    assert (
        taken(places, "2001:db8::ffff:2", 2) == "the limit of 3 connections from 2001:db8::/64 is "
        "reached; close some or retry later"
    )
    assert taken(places, "2001:db8:0:1::1", 1) is None
    assert (
        taken(places, "::ffff:10.0.0.1", 4) == "the limit of 3 connections from 10.0.0.1 is reached; "
        "close some or retry later"
    )


@given(st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "::1", "2001:db8::1", "2001:db8::2", "x"])))
def test_when_all_have_left_nothing_is_remembered(addresses: list[str]) -> None:
    """Clients that come once do not add up."""
    places = Places(3)
    for address in addresses:
        places.take(address)
    for address in reversed(addresses):
        places.leave(address)
    assert repr(places) == "0 of 3 connections, by 0 clients"
