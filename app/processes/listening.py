"""The sockets that the server listens on, opened before anything is started."""

import errno
import socket
from collections.abc import Callable, Sequence

_BACKLOG = 2048
_TRIES = 8  # attempts to find a port that is free on all addresses of a name

_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_ADVICE = {
    errno.EADDRINUSE: "; another program is using the port: stop it, or choose another port with {flag}",
    errno.EACCES: "; ports below 1024 are reserved for root: choose a higher one, such as {flag} 8000",
    errno.EADDRNOTAVAIL: "; it is not an address of this machine; use 0.0.0.0 for all of its addresses",
    errno.EAFNOSUPPORT: "; this machine has no IPv6; use 0.0.0.0 for all IPv4 addresses",
}

_Opened = Callable[[socket.AddressFamily, tuple[str | int, ...]], socket.socket]
Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


class CannotListen(Exception):
    """The address cannot be listened on. The text says why, and what to do."""


def listen(host: str, port: int, flag: str = "--port") -> list[socket.socket]:
    """Listening sockets on all addresses of ``host``, with one port; 0 is a free one. ``flag``: the flag of
    the port. Raises CannotListen."""
    return _open(host, port, flag, _listener)


def reserve_port(host: str, port: int, flag: str) -> list[socket.socket]:
    """Sockets on all addresses of ``host`` that reserve the port for processes of this user which share it
    (SO_REUSEPORT). They do not listen themselves. Raises CannotListen."""
    return _open(host, port, flag, _reservation)


def _open(host: str, port: int, flag: str, opened: _Opened) -> list[socket.socket]:
    addresses = _addresses(host, port)
    for _ in range(_TRIES):
        try:
            return _on_all(addresses, port, opened)
        except OSError as error:
            failure = error
            if port != 0 or error.errno != errno.EADDRINUSE:
                break
    advice = _ADVICE.get(failure.errno or 0, "").format(flag=flag)
    raise CannotListen(
        f"cannot listen on {host} port {port}: {failure.strerror or failure}{advice}"
    ) from failure


def _on_all(addresses: Sequence[Address], port: int, opened: _Opened) -> list[socket.socket]:
    """Sockets on all addresses. Raises OSError if one cannot be opened, except for addresses of a name that
    this machine does not have: localhost is also ::1, even without IPv6."""
    listeners: list[socket.socket] = []
    for number, (family, address) in enumerate(addresses, start=1):
        try:
            listeners.append(opened(family, (address[0], port, *address[2:])))
        except OSError as error:
            if error.errno in _NO_SUCH_ADDRESS and (listeners or number < len(addresses)):
                continue
            for listener in listeners:
                listener.close()
            raise
        port = listeners[0].getsockname()[1]
    return listeners


def _addresses(host: str, port: int) -> Sequence[Address]:
    """The addresses of a name. Raises CannotListen if it is unknown."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CannotListen(
            f"cannot listen on {host}: {error.strerror or error}; give an address, such as 127.0.0.1, or a "
            "name that this machine knows"
        ) from error
    # IPv4 first, so that the log shows the address that most people expect.
    unique = dict.fromkeys((each[0], each[4]) for each in found)
    return sorted(unique, key=lambda each: each[0] != socket.AF_INET)  # type: ignore[arg-type]


def _listener(family: socket.AddressFamily, address: tuple[str | int, ...]) -> socket.socket:
    listener = _bound(family, address, socket.SO_REUSEADDR)
    try:
        listener.listen(_BACKLOG)
        listener.setblocking(False)  # noqa: FBT003
    except BaseException:
        listener.close()
        raise
    return listener


def _reservation(family: socket.AddressFamily, address: tuple[str | int, ...]) -> socket.socket:
    # Check that no other server of this user has the port. With SO_REUSEPORT, both would share connections.
    _bound(family, address, socket.SO_REUSEADDR).close()
    return _bound(family, address, socket.SO_REUSEPORT)


def _bound(family: socket.AddressFamily, address: tuple[str | int, ...], option: int) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, option, 1)
        if family == socket.AF_INET6:  # :: includes IPv4; other IPv6 addresses do not
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        opened.bind(address)
    except BaseException:
        opened.close()
        raise
    return opened


def url(scheme: str, listener: socket.socket) -> str:
    """The URL for clients."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
