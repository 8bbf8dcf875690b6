"""The number of connections of each client, and whether it may open another one. Pure: no sockets."""

from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

from app.http.clients import client_of, unmapped

_SHARE = 0.75


class Places:
    """``most`` connections in total, ``most_each`` for one client. By default a client may have three
    quarters, so that no single client keeps out all others. This machine may have all, because a proxy may
    run on it. The clients of ``proxies`` come from one address and are not counted separately."""

    def __init__(self, most: int, most_each: int | None = None, proxies: Sequence[str] = ()) -> None:
        self.most = most
        self._most_each = max(1, int(most * _SHARE)) if most_each is None else most_each
        self._spares_loopback = most_each is None
        self._proxies = tuple(map(ip_network, proxies))
        self._held: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"{self._held.total()} of {self.most} connections, by {len(self._held)} clients"

    def take(self, address: str) -> None:
        """Count a connection of this client."""
        self._held[client_of(address)] += 1

    def leave(self, address: str) -> None:
        """Count the end of a connection."""
        client = client_of(address)
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]

    def trouble(self, address: str, beyond: int = 0) -> str | None:
        """Why a connection of this client, which is already counted, is one too many, by more than
        ``beyond``."""
        if self._held.total() > self.most + beyond:
            return f"the limit of {self.most} connections is reached; retry later"
        client = client_of(address)
        if self._held[client] > self._most_each + beyond and not self._spared(address):
            return (
                f"the limit of {self._most_each} connections from {client} is reached; close some or "
                "retry later"
            )
        return None

    def _spared(self, address: str) -> bool:
        try:
            ip = unmapped(ip_address(address))
        except ValueError:
            return True
        return (self._spares_loopback and ip.is_loopback) or any(ip in network for network in self._proxies)
