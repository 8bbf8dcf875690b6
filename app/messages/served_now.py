"""The file that lists the models that are served in addition to the default one. The dispatcher writes it for
processes that start later: workers, and its own successor."""

import logging
from collections.abc import Iterable
from pathlib import Path

import msgspec

log = logging.getLogger(__name__)


def write_served(path: Path, names: Iterable[str]) -> None:
    """Replace the file atomically. Raises OSError."""
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(list(names)))
    new.replace(path)


def read_served(path: Path) -> tuple[str, ...] | None:
    """The names; None while nothing has been loaded or unloaded since the start."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[str, ...])
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        log.error("cannot read the list of served models, using those from startup: %s", error)
        return None
