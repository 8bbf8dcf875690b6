"""The server's certificate for gRPC, which is read again when its files change."""

import logging
from pathlib import Path

import grpc

from app.security.file_version import version_of
from app.security.tls import TlsError, server_context
from app.settings.security import SecuritySettings

log = logging.getLogger(__name__)


def credentials(settings: SecuritySettings) -> grpc.ServerCredentials:
    """The credentials of the settings, which name both files. Raises TlsError if the files cannot be used
    now. If they become invalid later, the old ones stay in use, and an error is logged."""
    assert settings.tls_certificate is not None
    assert settings.tls_key is not None
    certificate, key = settings.tls_certificate, settings.tls_key
    version = _version(certificate, key)
    current = _configuration(certificate, key)

    def if_changed() -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC for each new connection. None: the certificate has not changed."""
        nonlocal version
        now = _version(certificate, key)
        if now == version:
            return None
        version = now
        try:
            return _configuration(certificate, key)
        except TlsError as error:
            log.error("the gRPC certificate was not reloaded and stays unchanged: %s", error)
            return None

    return grpc.dynamic_ssl_server_credentials(current, if_changed)  # type: ignore[arg-type] # None is allowed


def _version(certificate: Path, key: Path) -> tuple[object, object]:
    return version_of(certificate), version_of(key)


def _configuration(certificate: Path, key: Path) -> grpc.ServerCertificateConfiguration:
    server_context(certificate, key)  # raises an error that says what is wrong with the files
    return grpc.ssl_server_certificate_configuration([(key.read_bytes(), certificate.read_bytes())])
