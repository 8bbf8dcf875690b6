"""The operands PHOTO -> the photographs that they name."""

import glob
import os
import re
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.commands.failures import UsageError
from app.errors import TooLarge, UnreadableRequest
from models.image_files import contents, told
from models.names import shown

STANDARD_INPUT = "-"

_MOST_BYTES = 512 * 2**20  # per file, so that a video is not read completely before it is rejected


@dataclass(frozen=True, slots=True)
class Photograph:
    """An encoded image that has not been read yet. ``path`` is None for standard input. ``within`` is its
    path within a folder that was given. ``problem`` is set if it is already known that it cannot be read."""

    path: Path | None
    within: Path
    problem: str | None = None

    def __str__(self) -> str:
        return STANDARD_INPUT if self.path is None else str(self.path)

    def read(self) -> bytes:
        """Raises OSError, UnreadableRequest and TooLarge."""
        if self.problem is not None:
            raise UnreadableRequest(self.problem)
        if self.path is None:
            return _within_limit(sys.stdin.buffer.read(_MOST_BYTES + 1))
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_size > _MOST_BYTES:
                raise _too_large(f"the file has {status.st_size} bytes")
            return _within_limit(file.read(_MOST_BYTES + 1))


@dataclass(slots=True)
class Found:
    """The photographs in the order of the operands. ``remarks``: what was skipped in folders. ``failures``: a
    line for each folder without a photograph."""

    photographs: list[Photograph] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def find(operands: Sequence[str]) -> Found:
    """The named files, those that match a pattern, and the images in folders, sorted by path.

    An operand that is not a file fails later, when it is read. A file that is named twice is returned twice.
    Raises UsageError if standard input is a terminal or named twice, and for an empty name.
    """
    found = Found()
    if list(operands).count(STANDARD_INPUT) > 1:
        raise UsageError("standard input (-) can be read once")
    for operand in operands:
        if operand == STANDARD_INPUT:
            _check_standard_input()
            found.photographs.append(Photograph(None, Path("standard-input")))
        elif not operand.strip():
            raise UsageError("a PHOTO has an empty name; check whether a shell variable is not set")
        elif os.path.lexists(operand):
            _add(found, Path(operand))
        elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|data:", operand):
            found.photographs.append(Photograph(Path(operand), Path("url"), _of_url(operand)))
        elif glob.has_magic(operand):  # a quoted pattern, or a shell that does not expand patterns
            matching = sorted(glob.glob(operand, recursive=True))  # noqa: PTH207 - takes absolute patterns, too
            for path in matching:
                _add(found, Path(path))
            if not matching:
                problem = f"no file matches {shown(operand)}"
                found.photographs.append(Photograph(Path(operand), Path("none"), problem))
        else:
            _add(found, Path(operand))
    return found


def in_folder(folder: Path) -> Found:
    """The images of a folder and its sub-folders. A failure is returned if there are none or the folder
    cannot be read."""
    found = Found()
    try:
        there = contents(folder)
    except OSError as error:
        found.failures.append(f"{shown(folder)} cannot be read: {error.strerror or error}")
        return found
    if there.passed_over:
        found.remarks.append(told(there.passed_over, folder))
    if not there.images:
        found.failures.append(f"there are no images in {shown(folder)}")
    found.photographs += [Photograph(path, path.relative_to(folder)) for path in there.images]
    return found


def _add(found: Found, path: Path) -> None:
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        there = in_folder(path)
        found.photographs += there.photographs
        found.remarks += there.remarks
        found.failures += there.failures
    else:
        found.photographs.append(Photograph(path, Path(path.name)))


def _check_standard_input() -> None:
    """Raises UsageError if standard input is a terminal."""
    if sys.stdin.isatty():
        raise UsageError(
            "standard input (-) is the terminal; give it an image, as in trimvit classify - < holiday.jpg"
        )


def _of_url(url: str) -> str:
    if url.startswith("file://"):
        return "it is a URL; give the path of the file"
    if url.startswith("data:"):
        return "it is a data URL; decode its base64 and give the image on standard input (-)"
    return "it is a URL, and URLs are not downloaded; use curl -s URL | trimvit classify -"


def _within_limit(data: bytes) -> bytes:
    if len(data) > _MOST_BYTES:
        raise _too_large("the input has more bytes")
    return data


def _too_large(what: str) -> TooLarge:
    return TooLarge(f"{what}; at most {_MOST_BYTES} are read")
