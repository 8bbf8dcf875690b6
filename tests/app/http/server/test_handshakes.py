"""The HTTPS port: handshakes are counted and timed, and a renewed certificate is used."""

import select
import shutil
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.settings.settings import Settings
from tests.app.http.wire import Wire, answer, everything, wire
from tests.app.security.test_tls import self_signed

GET = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


def settings_of(folder: Path, **others: object) -> Settings:
    """Of a server with what is in the folder."""
    return Settings(tls_certificate=folder / "certificate.pem", tls_key=folder / "key.pem", **others)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate and its key."""
    made = tmp_path_factory.mktemp("tls")
    self_signed(made)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Wire]:
    with wire(settings_of(folder, head_timeout_s=1, max_connections=20)) as running:
        yield running


def secured(server: Wire, folder: Path, protocols: list[str] | None = None) -> ssl.SSLSocket:
    """A connection after its handshake, of a client that trusts the certificate in the folder."""
    context = ssl.create_default_context(cafile=folder / "certificate.pem")
    if protocols:
        context.set_alpn_protocols(protocols)
    return context.wrap_socket(server.connect(), server_hostname="127.0.0.1")


@pytest.mark.parametrize(
    ("protocols", "chosen"),
    [(None, None), (["http/1.1"], "http/1.1"), (["h2", "http/1.1"], "http/1.1"), (["h2"], None)],
)
def test_it_speaks_http_1_1(
    server: Wire, folder: Path, protocols: list[str] | None, chosen: str | None
) -> None:
    """Whatever else a client offers."""
    with secured(server, folder, protocols) as connection:
        assert connection.selected_alpn_protocol() == chosen
        connection.sendall(GET)
        assert answer(everything(connection)).status == 200


def test_http_2_without_an_agreement_is_refused_in_words(server: Wire, folder: Path) -> None:
    """As on the plain port."""
    with secured(server, folder, ["h2"]) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert "HTTP/1.1" in answer(everything(connection)).detail


@pytest.mark.parametrize(
    "sent", [GET, b"\r\n\r\n", b"SSH-2.0-x\r\n", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"]
)
def test_a_client_without_tls_is_told_so(server: Wire, sent: bytes) -> None:
    """In plain HTTP, which it understands."""
    refused = answer(server.say(sent))
    assert refused.status == 400
    assert "use https://" in refused.detail


def hello() -> bytes:
    """What a TLS client says first."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="here")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01", hello()[:100], hello(), b"\x80"], ids=len)
def test_a_handshake_that_does_not_end_is_given_up(server: Wire, said: bytes) -> None:
    """Whether the client is silent or stops in the middle."""
    with server.connect() as connection:
        connection.sendall(said)
        everything(connection)


def test_silence_after_the_handshake_is_given_up(server: Wire, folder: Path) -> None:
    """The time counts from the first moment of the connection."""
    with secured(server, folder) as connection:
        assert everything(connection) == b""


@pytest.mark.parametrize("said", [b"\x16" + b"\xff" * 400, b"\x16\x03\x01\x00\x02\x01\x00", b"\x80" * 400])
def test_what_is_no_handshake_is_cut_off(server: Wire, said: bytes) -> None:
    """And the server goes on."""
    with server.connect() as connection:
        connection.sendall(said)
        everything(connection)


def test_handshakes_are_connections(folder: Path) -> None:
    """Silent ones take places: one too many is told so after its handshake, many too many are cut off; and
    their places are free again."""
    settings = settings_of(folder, head_timeout_s=5, max_connections=20)
    with wire(settings) as server, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(server.connect())
        with secured(server, folder) as one_too_many:
            one_too_many.sendall(GET)
            refused = answer(everything(one_too_many))
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert "limit of 20 connections" in refused.detail
        began = time.monotonic()
        for _ in range(105):
            stack.enter_context(server.connect())
        with server.connect() as far_too_many:
            far_too_many.sendall(hello())
            assert everything(far_too_many) == b""
        stack.close()
        until = began + 30
        while time.monotonic() < until:
            with secured(server, folder) as connection:
                connection.sendall(GET)
                if answer(everything(connection)).status == 200:
                    return
        pytest.fail("the places stayed taken")


def serial(server: Wire) -> int:
    """Of the certificate that a new connection sees."""
    from cryptography import x509

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(server.connect()) as connection:
        seen = connection.getpeercert(binary_form=True)
        assert seen is not None
        return x509.load_der_x509_certificate(seen).serial_number


def test_a_renewed_certificate_is_used_without_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From the next connection on; connections that are there go on. One that does not belong to the key
    changes nothing, and the log says why."""
    caplog.set_level("INFO", logger="app.security.tls")
    (tmp_path / "other").mkdir()
    self_signed(tmp_path)
    with wire(settings_of(tmp_path, max_connections=20)) as server:
        first = serial(server)
        with secured(server, tmp_path) as kept:
            self_signed(tmp_path / "other")
            shutil.copy(tmp_path / "other/certificate.pem", tmp_path / "certificate.pem")
            time.sleep(1.1)  # the files are looked at once a second
            assert serial(server) == first
            assert "the certificate was not reloaded" in caplog.text
            shutil.copy(tmp_path / "other/key.pem", tmp_path / "key.pem")
            time.sleep(1.1)
            assert serial(server) != first
            assert "reloaded the certificate from" in caplog.text
            kept.sendall(GET)
            assert answer(everything(kept)).status == 200


def test_others_are_answered_while_many_shake_hands(folder: Path) -> None:
    """Handshakes are begun a few at a time, and one client's wait for each other."""
    settings = settings_of(folder, head_timeout_s=60)
    asked = GET.replace(b"Connection: close\r\n", b"")
    with wire(settings) as server, ExitStack() as stack, secured(server, folder) as other:
        crowd = [stack.enter_context(server.connect()) for _ in range(500)]
        greeting = hello()
        for connection in crowd:
            connection.sendall(greeting)
        answered = 0
        last = select.poll()  # which takes any file number; select takes none above 1023
        last.register(crowd[-1], select.POLLIN)
        while not last.poll(0):  # until the last one's turn has come
            other.sendall(asked)
            said = b""
            while not said.endswith(b'{"status":"alive"}'):
                said += other.recv(65536)
            answered += 1
        assert answered > 10


def test_many_connections_that_only_said_hello_are_small(folder: Path) -> None:
    """A TLS object is made for those that spoke, and no more."""
    import psutil

    settings = settings_of(folder, head_timeout_s=60)
    with wire(settings) as server, ExitStack() as stack:
        secured(server, folder).close()
        before = psutil.Process().memory_info().rss
        greeting = hello()
        silent = [stack.enter_context(server.connect()) for _ in range(300)]
        secured(server, folder).close()
        assert psutil.Process().memory_info().rss - before < 300 * 30_000
        for connection in silent:
            connection.sendall(greeting)
        for connection in silent:
            assert connection.recv(1)
        grown = psutil.Process().memory_info().rss - before
        assert grown < 300 * 200_000
