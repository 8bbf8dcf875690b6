"""Certificates that cannot be used are found before anything is started."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.security.tls import TlsError, check_tls
from app.settings.settings import Settings


def self_signed(folder: Path, *, password: bytes | None = None) -> Settings:
    """Settings with a new certificate for 127.0.0.1 and its key, in files of this folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "TrimViT's test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encryption = (
        serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    )
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    return Settings(tls_certificate=folder / "certificate.pem", tls_key=folder / "key.pem")


def test_a_certificate_and_its_key_are_taken(tmp_path: Path) -> None:
    """And so is neither."""
    check_tls(self_signed(tmp_path))
    check_tls(Settings())


@pytest.mark.parametrize("name", ["tls_certificate", "tls_key"])
def test_one_without_the_other_is_refused(tmp_path: Path, name: str) -> None:
    """It is a slip, and must not end in plain HTTP."""
    given = {name: getattr(self_signed(tmp_path), name)}
    with pytest.raises(TlsError, match="must be given together"):
        check_tls(Settings(**given))


@pytest.mark.parametrize("name", ["tls_certificate", "tls_key"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    """Not there, or not for us to read."""
    settings = self_signed(tmp_path)
    path: Path = getattr(settings, name)
    path.unlink()
    with pytest.raises(TlsError, match=rf"{path.name} cannot be read: No such file"):
        check_tls(settings)


@pytest.mark.parametrize("broken", ["certificate", "key", "another's key", "encrypted key"])
def test_what_does_not_belong_together_is_refused(tmp_path: Path, broken: str) -> None:
    """The text says what is expected; nobody is asked for a pass phrase, and no key is shown."""
    settings = self_signed(tmp_path, password=b"secret" if broken == "encrypted key" else None)
    assert settings.tls_certificate is not None
    assert settings.tls_key is not None
    if broken == "certificate":
        settings.tls_certificate.write_text("no certificate")
    elif broken == "key":
        settings.tls_key.write_text("no key")
    elif broken == "another's key":
        (tmp_path / "other").mkdir()
        other = self_signed(tmp_path / "other").tls_key
        assert other is not None
        settings.tls_key.write_bytes(other.read_bytes())
    with pytest.raises(TlsError, match="are not a certificate with its unencrypted key, in PEM") as caught:
        check_tls(settings)
    assert "PRIVATE KEY" not in str(caught.value)
