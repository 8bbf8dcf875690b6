"""Types of settings that people write in several forms, with error messages for invalid ones."""

import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator

_OWN_FOLDERS = frozenset({"v1", "v2", "models", "static", "docs"})
_AUTHORITY = re.compile(r"(?P<host>\[[^\]]*\]|[^:\s/]*):(?P<port>\d+)")


def _file(value: object) -> object:
    if value == "":
        raise ValueError("it is empty; name a file, or leave it out")
    return value


def _devices(text: str) -> str:
    devices = text.replace(" ", "").lower()
    if not re.fullmatch(r"auto|(cpu|cuda(:\d+)?)(,(cpu|cuda(:\d+)?))*", devices):
        raise ValueError("must be auto, cpu or cuda:N, or several of cpu and cuda:N, such as cuda:0,cuda:1")
    return devices


def _host(text: str) -> str:
    """An address or a name, without the brackets that an IPv6 address has in a URL."""
    if "://" in text:
        raise ValueError("it is a URL; give only the address, such as 127.0.0.1, and the port with --port")
    if found := _AUTHORITY.fullmatch(text):
        alone = found["host"].strip("[]") or "0.0.0.0"  # noqa: S104
        raise ValueError(f"it contains a port; write {alone}, and give the port with --port {found['port']}")
    host = text.strip("[]") if text.startswith("[") and text.endswith("]") else text
    if ":" in host:
        try:
            ip_address(host)
        except ValueError:
            raise ValueError("it is not an IPv6 address, such as ::1") from None
    elif host in ("", "*"):
        raise ValueError(
            "give an address: 0.0.0.0 for all IPv4 addresses, :: for all addresses, 127.0.0.1 for "
            "this machine only"
        )
    elif not re.fullmatch(r"[\w.-]+", host):
        raise ValueError("it is neither an address nor a host name, such as 127.0.0.1, ::1 or localhost")
    return host


def _root_path(text: str) -> str:
    """A path from the root, without a slash at its end."""
    if "://" in text:
        raise ValueError("it is a URL; give only its path, such as /vit")
    path = "/" + text.strip("/")
    if path == "/":
        raise ValueError("the root path is the default: leave it out, or give a path such as /vit")
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]*[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+", path):
        raise ValueError("it must be a path of letters, digits and . _ ~ -, such as /vit")
    if path.split("/")[1] in _OWN_FOLDERS:
        raise ValueError(f"the server uses {path} for its own routes; use another path, such as /vit")
    return path


def _host_name(text: str) -> str:
    """A host name, a pattern for all names below one, or * for all."""
    if not re.fullmatch(r"\*|(\*\.)?[A-Za-z0-9_-][A-Za-z0-9_.-]*|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*", text):
        raise ValueError(
            "give only host names, without scheme, port and path, such as vit.example.org or "
            "*.example.org; * accepts every name"
        )
    return text


def _names(value: object) -> object:
    """Names in a flag or an environment variable, separated by commas."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


def _address(text: str) -> str:
    try:
        ip_network(text)
    except ValueError:
        pass
    else:
        return text
    try:
        meant = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{text!r} is neither an address nor a network, such as 10.0.0.7 or 10.0.0.0/8"
        ) from None
    raise ValueError(
        f"{text!r} is an address within a network; write {meant} for the network, or "
        f"{text.partition('/')[0]} for the address"
    )


def _origin(text: str) -> str:
    if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:\d+)?|https?://\[[0-9a-f:]+\](:\d+)?", text):
        raise ValueError(f"{text!r} is not an origin, such as https://example.org or http://localhost:3000")
    return text


RootPath = Annotated[str, AfterValidator(_root_path)]
File = Annotated[Path, BeforeValidator(_file)]
Devices = Annotated[str, AfterValidator(_devices)]
Host = Annotated[str, AfterValidator(_host)]
HostNames = Annotated[tuple[Annotated[str, AfterValidator(_host_name)], ...] | None, BeforeValidator(_names)]
CudaGraphs = Literal["auto", "off"]
InputName = Literal["image", "pixels"]  # of the Open Inference Protocol
Addresses = Annotated[tuple[Annotated[str, AfterValidator(_address)], ...] | None, BeforeValidator(_names)]
Origins = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...] | None, BeforeValidator(_names)]
