"""API keys. Only hashes are kept, and comparisons take constant time."""

import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from app.priority import PRIORITIES, Priority
from app.security.file_version import version_of
from app.settings.security import SecuritySettings
from app.settings.variables import plain

log = logging.getLogger(__name__)

KEYS_VARIABLE = "TRIMVIT_API_KEYS"
SHORTEST_KEY = 16
_CHECK_EVERY_S = 1.0

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_COMMENT = re.compile(r"(^|\s)#.*")
_KEY = re.compile(r"[!-+\--~]+")  # printable ASCII except space and comma
_OF_PRIORITY: dict[str, Priority] = {f"priority={priority}": priority for priority in PRIORITIES}
_ADMIN = "admin"
_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})", re.IGNORECASE)
# Hash formats of htpasswd, LDAP, shadow files and other programs.
_OTHER_HASH = re.compile(
    r"\{\w*(sha|md5)[\w-]*\}|(sha|md)-?\d+[:=$]|(bcrypt|scrypt|argon2\w*|pbkdf2\w*)[:=$]|\$\w+\$",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"([\"']).*\1")


class KeysError(ValueError):
    """The keys cannot be read. The text says where and why, and contains no key."""


@dataclass(frozen=True, slots=True, repr=False)
class ApiKey:
    """A caller's name and the SHA-256 of its key. A name may have several keys, for example during a
    rotation.

    ``max_priority``: the highest priority of the key; None if the setting decides. ``is_admin``: whether it
    may load and unload models.
    """

    name: str
    digest: bytes
    max_priority: Priority | None = None
    is_admin: bool = False

    def __repr__(self) -> str:
        return f"ApiKey({self.name!r})"


def parse_keys(text: str, source: str) -> tuple[ApiKey, ...]:
    """One `name:key` or `name:sha256:HEX` per line or between commas. # begins a comment. After a key, its
    highest priority may follow, and whether it may load and unload models: `name:key priority=high admin`.

    Raises KeysError, which names the source and the line.
    """
    keys: list[ApiKey] = []
    for number, line in enumerate(text.splitlines(), start=1):
        for entry in filter(None, (part.strip() for part in _COMMENT.sub("", line).split(","))):
            name, colon, rest = entry.partition(":")
            secret, *attributes = re.split(r"\s+", rest)
            # The error does not quote the line, because an invalid name may be a key.
            where = f"line {number} of {source}"
            if not colon or not _NAME.fullmatch(name):
                raise KeysError(
                    f"{where} is not name:key or name:sha256:HEX; names may contain A-Z a-z 0-9 . _ -"
                )
            priorities = [_OF_PRIORITY[each] for each in attributes if each in _OF_PRIORITY]
            is_admin = _ADMIN in attributes
            if len(attributes) > len(priorities) + is_admin or len(priorities) > 1:
                raise KeysError(
                    f"{where}: the key must not contain a space, and may be followed by only one of "
                    f"{', '.join(_OF_PRIORITY)}, and by {_ADMIN}"
                )
            max_priority = priorities[0] if priorities else None
            if hashed := _HASHED.fullmatch(secret):
                keys.append(ApiKey(name, bytes.fromhex(hashed[1]), max_priority, is_admin))
                continue
            if secret.lower().startswith("sha256:"):
                raise KeysError(f"{where}: the hash must have 64 hexadecimal digits")
            if _OTHER_HASH.match(secret):  # used as a plain key, it would admit anyone who has read the hash
                raise KeysError(f"{where}: a hash must be written as sha256: and 64 hexadecimal digits")
            if _QUOTED.fullmatch(secret):
                raise KeysError(f"{where}: the key is in quotation marks; write it without them")
            if len(secret) < SHORTEST_KEY or not _KEY.fullmatch(secret) or "#" in secret:
                raise KeysError(
                    f"{where}: the key must have at least {SHORTEST_KEY} printable ASCII "
                    "characters, and no space, comma or #"
                )
            keys.append(ApiKey(name, hashlib.sha256(secret.encode()).digest(), max_priority, is_admin))
    owners: dict[bytes, ApiKey] = {}
    for key in keys:
        if owners.setdefault(key.digest, key) != key:
            other = owners[key.digest].name
            raise KeysError(
                f"{source}: {other} and {key.name} have the same key, or the key has other rights there; "
                "give each caller its own key"
            )
    if not keys:
        raise KeysError(f"{source} contains no keys; write each as name:key")
    return tuple(keys)


class KeyRing:
    """The valid keys: those of the environment, and those of a file, which is read again when it changes.

    If the file becomes unreadable or invalid, the last valid keys stay in use, and an error is logged.
    """

    def __init__(
        self, fixed: tuple[ApiKey, ...], path: Path | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises KeysError if the file cannot be read now."""
        self._fixed = fixed
        self._path = path
        self._clock = clock
        self._from_file: tuple[ApiKey, ...] = ()
        self._version: tuple[int, ...] | None = None
        self._check_at = clock() + _CHECK_EVERY_S
        if path is not None:
            self._version = version_of(path)
            self._from_file = _read(path)

    def __repr__(self) -> str:
        return f"KeyRing({len(self._fixed)} fixed, {len(self._from_file)} from {self._path})"

    def name_of(self, presented: str) -> str | None:
        """The name of this key. None if it is not valid."""
        key = self.key_of(presented)
        return None if key is None else key.name

    def key_of(self, presented: str) -> ApiKey | None:
        """The entry of this key. None if it is not valid. It takes the same time for every key, valid or
        not."""
        self._read_again_if_changed()
        digest = hashlib.sha256(presented.encode()).digest()
        found = None
        for key in (*self._fixed, *self._from_file):
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _read_again_if_changed(self) -> None:
        now = self._clock()
        if self._path is None or now < self._check_at:
            return
        self._check_at = now + _CHECK_EVERY_S
        version = version_of(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._from_file = _read(self._path)
        except KeysError as error:
            log.error("the API keys were not reloaded and stay unchanged: %s", error)
        else:
            log.info("loaded %d API keys from %s", len(self._from_file), self._path)


def key_ring(settings: SecuritySettings, environment: Mapping[str, str] = os.environ) -> KeyRing | None:
    """The keys of the settings' file and of TRIMVIT_API_KEYS. None if there is neither.

    Raises KeysError if they cannot be read.
    """
    listed = plain(environment.get(KEYS_VARIABLE, ""))
    if settings.api_keys_file is None and not listed:
        return None
    fixed = parse_keys(listed, KEYS_VARIABLE) if listed else ()
    return KeyRing(fixed, settings.api_keys_file)


def _read(path: Path) -> tuple[ApiKey, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows editors write a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise KeysError(f"the API keys in {path} cannot be read: {reason}") from error
    return parse_keys(text, str(path))
