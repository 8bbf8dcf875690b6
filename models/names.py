"""Paths, and errors about them, in one line for a terminal."""

import os
from pathlib import Path


def shown(path: Path | str) -> str:
    """A path for a line on a terminal: line breaks, escapes and bytes that are no text are spelt out."""
    return "".join(map(_shown_character, str(path)))


def _shown_character(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte of a name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def in_words(error: Exception) -> str:
    """The path and the reason, where a system gave them; its number says nothing to a person."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    name = error.filename
    return (
        f"{shown(os.fsdecode(name))}: {error.strerror}" if isinstance(name, str | bytes) else error.strerror
    )
