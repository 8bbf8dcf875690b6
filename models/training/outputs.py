"""Check that a command can write its output before it starts hours of work."""

import os
from pathlib import Path

from models.names import shown


class OutputError(ValueError):
    """The output cannot be written to the given path. The message says what to do."""


def check_output_file(path: Path) -> None:
    """Raise OutputError if the file cannot be written."""
    if path.is_dir():
        raise OutputError(f"--output {shown(path)} is a folder; give a file in it")
    parent = path.parent
    if not parent.is_dir():
        raise OutputError(
            f"--output {shown(path)}: the folder {shown(parent)} does not exist; create it first"
        )
    if not os.access(parent, os.W_OK):
        raise OutputError(f"--output {shown(path)}: the folder {shown(parent)} is not writable")


def make_output_folder(path: Path, data: Path) -> None:
    """Create the folder if it does not exist. Raises OutputError if this is not possible, or if it is inside
    ``data``, where it would be read as images."""
    if path.resolve().is_relative_to(data.resolve()):
        raise OutputError(
            f"--output {shown(path)} is inside --data {shown(data)}, so its files would be read as images "
            "next time; give another folder"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"--output {shown(path)} is a file; give a folder") from None
    except OSError as error:
        raise OutputError(f"--output {shown(path)} cannot be created: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise OutputError(f"--output {shown(path)} is not writable")
