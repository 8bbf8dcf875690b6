"""Formats paths, and errors about them, as one line for a terminal."""

import os
from pathlib import Path


def shown(path: Path | str) -> str:
    """Escape a path for a terminal: line breaks, control characters and bytes that are not UTF-8."""
    return "".join(map(_shown_character, str(path)))


def _shown_character(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # Python's surrogate escape of a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def in_words(error: Exception) -> str:
    """Format an error without its errno: the path and the reason of an OSError, otherwise its text."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    name = error.filename
    return (
        f"{shown(os.fsdecode(name))}: {error.strerror}" if isinstance(name, str | bytes) else error.strerror
    )
