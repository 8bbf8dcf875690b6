"""The sockets that the server listens on."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from app.processes.listening import CannotListen, listen, reserve_port, url

ROOT = Path(__file__).parents[3]


@contextmanager
def listening(host: str, port: int = 0) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(closing(each)) for each in listen(host, port)]


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", pytest.param("::1", marks=needs_ipv6)])
def test_an_address_is_listened_on(host: str) -> None:
    """At a free port, which the URL names."""
    with listening(host) as (listener,):
        port = listener.getsockname()[1]
        assert port > 0
        assert url("http", listener) == f"http://{f'[{host}]' if ':' in host else host}:{port}"
        socket.create_connection((host, port)).close()


@needs_ipv6
def test_a_name_is_listened_on_at_all_its_addresses() -> None:
    """With one port, so that a client may take any of them."""
    names = {each[4][0] for each in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    with listening("localhost") as listeners:
        assert {each.getsockname()[0] for each in listeners} == names
        (port,) = {each.getsockname()[1] for each in listeners}
        for name in names:
            socket.create_connection((name, port)).close()


@needs_ipv6
def test_two_colons_are_all_addresses() -> None:
    """Of IPv4, too, whatever the system's default."""
    with listening("::") as (listener,):
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, listener.getsockname()[1])).close()


def test_a_port_in_use_is_told() -> None:
    """With the flag that chooses another, and no socket left open."""
    with listening("127.0.0.1") as (taken,):
        port = taken.getsockname()[1]
        before = open_files()
        with pytest.raises(CannotListen) as caught:
            listen("127.0.0.1", port, "--operations-port")
        assert str(caught.value) == (
            f"cannot listen on 127.0.0.1 port {port}: Address already in use; another program is using "
            "the port: stop it, or choose another port with --operations-port"
        )
        assert open_files() == before


def test_a_reserved_port_is_not_shared_with_another_server() -> None:
    """Neither before its processes listen there, nor afterwards; they do."""
    (reserved,) = reserve_port("127.0.0.1", 0, "--grpc-port")
    port = reserved.getsockname()[1]
    with closing(reserved), socket.socket() as shares:
        shares.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shares.bind(("127.0.0.1", port))
        for begin in (lambda: None, shares.listen):
            begin()
            with pytest.raises(CannotListen, match="choose another port with --grpc-port"):
                reserve_port("127.0.0.1", port, "--grpc-port")
    reserve_port("127.0.0.1", port, "--grpc-port")[0].close()


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("192.0.2.1", "it is not an address of this machine; use 0.0.0.0 for all of its addresses"),
        ("no-such-machine.invalid", "give an address, such as 127.0.0.1, or a name that this machine knows"),
    ],
)
def test_an_address_of_another_machine_is_told(host: str, words: str) -> None:
    """And a name of none."""
    with pytest.raises(CannotListen, match=f"cannot listen on {host}.*{words}"):
        listen(host, 0)


def test_a_port_that_only_root_may_have_is_told() -> None:
    """To whoever is not root."""
    code = """
import os, sys
from app.processes.listening import CannotListen, listen
listen("127.0.0.1", 0)[0].close()  # what it imports may lie where only root may read
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
try:
    listen("127.0.0.1", 80)
except CannotListen as error:
    print(error)
"""
    lowest = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if lowest <= 80:
        pytest.skip("this machine lets everybody have port 80")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (
        "Permission denied; ports below 1024 are reserved for root: choose a higher one, such as --port 8000"
        in done.stdout
    )
