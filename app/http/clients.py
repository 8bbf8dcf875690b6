"""Addresses of clients, and which of them count as one client, for limits and fair shares."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

_NETWORK_BITS = 64  # of an IPv6 address: a client can use any address in its network


@lru_cache(maxsize=4096)  # called several times per connection and request
def client_of(address: str) -> str:
    """The IPv4 address, or the network of the IPv6 address. Anything else is returned as it is."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, IPv4Address) or ip.is_loopback:
        return str(ip)
    return str(ip.ipv4_mapped or IPv6Network((int(ip), _NETWORK_BITS), strict=False))


def unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The address, or the IPv4 address that it maps: a listener on :: reports its IPv4 clients like this."""
    return getattr(address, "ipv4_mapped", None) or address
