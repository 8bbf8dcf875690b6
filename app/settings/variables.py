"""The settings in environment variables, as people and orchestrators write them.

A file of variables keeps quotes and blanks around a value, a compose file sets variables to nothing, and
Kubernetes describes a Service called trimvit in variables that begin like our settings. All of this is
handled or logged; none of it prevents the start.
"""

import re
from collections.abc import Iterator, Mapping

from app.nearest import nearest

PREFIX = "TRIMVIT_"

# An empty value of these must not silently disable keys or TLS.
_NEVER_EMPTY = frozenset({"api_keys_file", "tls_certificate", "tls_key"})
# Variables that are not settings: API keys, and the data of the tests.
_NO_SETTINGS = re.compile(r"TRIMVIT_(API_KEYS?|TEST_\w+)")
# Variables that Kubernetes sets for Services in the namespace, and Docker for links, if the name is trimvit
# or starts with it.
_OF_A_SERVICE = re.compile(
    r"TRIMVIT_((\w+_)?SERVICE_(HOST|PORT(_\w+)?)|(\w+_)?PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_ADDRESS_OF_A_SERVICE = re.compile(r"(tcp|udp|sctp)://\S+:\d+")


def plain(value: str) -> str:
    """The value without surrounding blanks and line ends, and without the quotes of a file of variables."""
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1].strip()
    return value


def settings_in(variables: Mapping[str, str | None]) -> dict[str, str]:
    """The variables of the environment that are settings, by name in lower case."""
    found = {}
    for name, value in variables.items():
        setting = _setting(name)
        if setting is not None and not _describes_a_service(name, value or ""):
            text = plain(value or "")
            if text or setting in _NEVER_EMPTY:
                found[name.lower()] = text
    return found


def variable_of(setting: str, variables: Mapping[str, str]) -> str | None:
    """The name of the variable that sets this setting. None if none does."""
    given = settings_in(variables)
    return next((name for name in variables if _setting(name) == setting and name.lower() in given), None)


def remarks(
    variables: Mapping[str, str], settings: frozenset[str], elsewhere: Mapping[str, frozenset[str]]
) -> Iterator[str]:
    """Log messages about variables that begin like ours and have no effect. ``elsewhere``: settings of other
    commands, by command."""
    seen: set[str] = set()
    services = sorted(name for name, value in variables.items() if _describes_a_service(name, value))
    if services:
        yield (
            f"ignored {', '.join(services)}: they describe a Service of the cluster and are not settings "
            "(enableServiceLinks: false in the pod prevents them)"
        )
    for name, value in variables.items():
        setting = _setting(name)
        if setting == "api_keys" and not plain(value):
            yield f"{name} is empty, so it requires no API key"
        if setting is None or name in services or _NO_SETTINGS.fullmatch(name.upper()):
            continue
        if setting in seen:
            yield f"{name} is set twice, in upper and in lower case: keep one"
        seen.add(setting)
        command = next((command for command, names in elsewhere.items() if setting in names), None)
        if setting in settings:
            if not plain(value) and setting not in _NEVER_EMPTY:
                yield f"{name} is empty and is treated as not set"
        elif command is not None:
            yield f"{name} is a setting of {command} and has no effect here"
        else:
            found = nearest(setting, settings)
            meant = "" if found is None else f"; did you mean {PREFIX}{found.upper()}?"
            yield f"{name} is not a known setting and has no effect{meant}"


def _setting(name: str) -> str | None:
    """The name of the setting for a variable of this name. None if the name does not have our prefix."""
    return name[len(PREFIX) :].lower() if name.upper().startswith(PREFIX) else None


def _describes_a_service(name: str, value: str) -> bool:
    upper = name.upper()
    if _OF_A_SERVICE.fullmatch(upper):
        return True
    return bool(
        re.fullmatch(r"TRIMVIT_(\w+_)?PORT", upper) and _ADDRESS_OF_A_SERVICE.fullmatch(value.strip())
    )
