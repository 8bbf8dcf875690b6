"""Replaces files atomically."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_MOST_CHARACTERS = 40


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file with ``write`` and replace ``path`` by it atomically.

    If that fails, for example because the disk is full, the old file is unchanged and no partial file is
    left. Raises OSError with ``path`` as its file name.
    """
    # Hidden, so it is not taken for an image, and short, because ``path`` may already have the longest name
    # allowed.
    unfinished = path.with_name(f".{path.name[:_MOST_CHARACTERS]}.unfinished")
    try:
        with unfinished.open("wb") as file:
            write(file)
        unfinished.replace(path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        # torch.save raises a RuntimeError while it handles the file's OSError.
        for cause in (error, error.__context__):
            if isinstance(cause, OSError):
                raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise
