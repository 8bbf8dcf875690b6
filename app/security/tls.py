"""The server's certificate and key: checks them, and reloads them when they change."""

import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from app.security.file_version import version_of
from app.settings.security import SecuritySettings

log = logging.getLogger(__name__)

_CHECK_EVERY_S = 1.0


class TlsError(ValueError):
    """The certificate or the key cannot be used. The text says why."""


class Certificates:
    """The certificate and key of two files, which are read again when they change.

    If the files become unreadable or invalid, the last valid ones stay in use, and an error is logged. So it
    does not matter which of the two is replaced first.
    """

    def __init__(self, certificate: Path, key: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises TlsError if they cannot be used now."""
        self._certificate, self._key = certificate, key
        self._clock = clock
        self._check_at = clock() + _CHECK_EVERY_S
        self._version = self._version_now()
        self._context = server_context(certificate, key)

    @property
    def context(self) -> ssl.SSLContext:
        """The context for a new connection."""
        now = self._clock()
        if now >= self._check_at:
            self._check_at = now + _CHECK_EVERY_S
            self._read_again_if_changed()
        return self._context

    def _version_now(self) -> tuple[object, object]:
        return version_of(self._certificate), version_of(self._key)

    def _read_again_if_changed(self) -> None:
        version = self._version_now()
        if version == self._version:
            return
        self._version = version
        try:
            self._context = server_context(self._certificate, self._key)
        except TlsError as error:
            log.error("the certificate was not reloaded and stays unchanged: %s", error)
        else:
            log.info("reloaded the certificate from %s", self._certificate)


def certificates(settings: SecuritySettings) -> Certificates | None:
    """The certificates of the settings. None if there are none.

    Raises TlsError if they cannot be used.
    """
    if settings.tls_certificate is None and settings.tls_key is None:
        return None
    if settings.tls_certificate is None or settings.tls_key is None:
        raise TlsError("--tls-certificate and --tls-key must be given together: give both, or neither")
    return Certificates(settings.tls_certificate, settings.tls_key)


def check_tls(settings: SecuritySettings) -> None:
    """Raises TlsError if certificate and key cannot be read or do not match."""
    certificates(settings)


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """The TLS context of a server with this certificate, which supports HTTP/1.1.

    Raises TlsError.
    """
    for path in (certificate, key):
        try:
            path.read_bytes()
        except OSError as error:
            raise TlsError(f"{path} cannot be read: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Never ask the terminal for a pass phrase.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        raise TlsError(
            f"{certificate} and {key} are not a certificate with its unencrypted key, in PEM: "
            f"{error.reason or error}"
        ) from error
    return context
