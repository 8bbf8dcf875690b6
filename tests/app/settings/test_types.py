"""Settings that people write in several forms."""

import pytest
from pydantic import TypeAdapter, ValidationError

from app.settings.types import Devices, Host

HOSTS = TypeAdapter(Host)
DEVICES = TypeAdapter(Devices)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("[::]", "::"),
        ("::", "::"),
        ("[::1]", "::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("0.0.0.0", "0.0.0.0"),
        ("localhost", "localhost"),
        ("vit-1.example.org", "vit-1.example.org"),
    ],
)
def test_an_address_is_taken_with_brackets_and_without(text: str, host: str) -> None:
    """As in a URL, and as it is; a name stays a name."""
    assert HOSTS.validate_python(text) == host


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("*", "0.0.0.0 for all IPv4"),
        ("", "0.0.0.0 for all IPv4"),
        ("[]", "0.0.0.0 for all IPv4"),
        ("http://127.0.0.1:8000", "it is a URL"),
        ("127.0.0.1:8000", "write 127.0.0.1, and give the port with --port 8000"),
        ("[::1]:8000", "write ::1, and give the port with --port 8000"),
        (":8000", "write 0.0.0.0, and give the port with --port 8000"),
        ("::g", "not an IPv6 address, such as ::1"),
        ("127.0.0.1/8", "neither an address nor a host name"),
        ("my host", "neither an address nor a host name"),
        ("a,b", "neither an address nor a host name"),
    ],
)
def test_what_is_no_address_is_refused_with_what_to_write(text: str, words: str) -> None:
    """A port, a URL, a star."""
    with pytest.raises(ValidationError, match=words):
        HOSTS.validate_python(text)


@pytest.mark.parametrize(
    ("text", "devices"), [("CUDA:0, cuda:1", "cuda:0,cuda:1"), ("CPU", "cpu"), ("auto", "auto")]
)
def test_devices_are_taken_with_blanks_and_capitals(text: str, devices: str) -> None:
    """As PyTorch's users write them."""
    assert DEVICES.validate_python(text) == devices


@pytest.mark.parametrize("text", ["gpu", "cuda:x", "auto,cpu", "cpu,auto", "cpu,", ""])
def test_what_is_no_device_is_refused(text: str) -> None:
    """With what is one."""
    with pytest.raises(ValidationError, match="must be auto, cpu or cuda:N"):
        DEVICES.validate_python(text)
