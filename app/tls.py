"""Whether a certificate and its key can be used, found out before anything is started."""

import ssl

from app.settings import Settings


class TlsError(ValueError):
    """A certificate or key that cannot be used; the text says why."""


def check_tls(settings: Settings) -> None:
    """Raises TlsError where certificate and key cannot be read or do not belong together."""
    if settings.tls_certificate is None and settings.tls_key is None:
        return
    if settings.tls_certificate is None or settings.tls_key is None:
        raise TlsError("--tls-certificate and --tls-key go together: give both, or neither")
    for path in (settings.tls_certificate, settings.tls_key):
        try:
            path.read_bytes()
        except OSError as error:
            raise TlsError(f"{path} cannot be read: {error.strerror}") from error
    try:
        # Never ask the terminal for a pass phrase.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            settings.tls_certificate, settings.tls_key, password=lambda: ""
        )
    except ssl.SSLError as error:
        raise TlsError(
            f"{settings.tls_certificate} and {settings.tls_key} are not a certificate with its unencrypted "
            f"key, in PEM: {error.reason or error}"
        ) from error
