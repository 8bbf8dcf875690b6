"""Finds the images in a folder, for `trimvit classify`, `bench` and training. No torch."""

import os
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from models.formats import FORMATS
from models.names import shown

# Files and folders that operating systems leave in image folders, besides names that begin with a dot.
_LEFT_BEHIND = {
    *("thumbs.db", "thumbs.db:encryptable", "ehthumbs.db", "desktop.ini", "$recycle.bin"),  # Windows
    *("system volume information", "lost+found", "__pycache__"),
    *("__macosx", "icon\r"),  # macOS
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@__thumb", "@recently-snapshot"),  # network storage
}
# Raw files of cameras. Many are TIFFs whose first picture is a small preview.
RAW_ENDINGS = frozenset(
    f".{ending}"
    for family in ("dng cr2 cr3 nef nrw arw srf sr2 orf rw2 raf", "pef srw x3f 3fr iiq rwl")
    for ending in family.split()
)
# Images in formats that may not be decoded. They are tried anyway, so that the error names the format.
_OTHER_ENDINGS = frozenset(
    f".{ending}"
    for family in (
        "heic heics heif heifs hif avif avifs",
        "jp2 jpf jpx j2k j2c jpc jxl jxr wdp hdp",
        "psd psb tga pcx ico cur icns svg ppm pgm pbm pnm xbm xpm exr hdr dds qoi eps",
    )
    for ending in family.split()
)
_SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"),
    *(b"\0\0\0\x0cjP  ", b"\0\0\0\x0cJXL ", b"\xff\x4f\xff\x51"),
)
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_MOST_NAMES = 20


Reason = Literal["no image", "not a regular file", "another path to the same folder", "cannot be read"]


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A file or folder that is skipped, and why."""

    path: Path
    reason: Reason


@dataclass(frozen=True, slots=True)
class Contents:
    """The content of a folder: its images and the skipped entries, each sorted by path. Hidden files are not
    listed."""

    images: tuple[Path, ...]
    passed_over: tuple[PassedOver, ...]


def decoded_endings() -> frozenset[str]:
    """The file name extensions of the supported formats, in lower case."""
    Image.init()
    registered = {end for end, kind in Image.registered_extensions().items() if kind in FORMATS}
    return frozenset(registered | {".mpo"})  # an MPO starts with a JPEG, its first picture


def is_hidden(name: str) -> bool:
    """Whether a file or folder is ignored: its name begins with a dot, or it is one that operating systems
    leave behind."""
    return name.startswith((".", "~$")) or name.casefold() in _LEFT_BEHIND


def contents(folder: Path, within: Iterable[Path] = (), *, sub_folders: bool = True) -> Contents:
    """List the content of a folder, including its sub-folders unless ``sub_folders`` is False.

    Links to folders are followed, but no folder is read twice, so links cannot form a loop. ``within``: the
    parent folders of ``folder``; links to them are skipped too. A file is an image if its extension or its
    first bytes say so. Raises OSError if the folder itself cannot be read.
    """
    endings = decoded_endings() | _OTHER_ENDINGS | RAW_ENDINGS
    seen = {_identity(parent) for parent in within}
    images: list[Path] = []
    passed_over: list[PassedOver] = []
    # Links come last, so that a folder is reported by its own path rather than by a link to it.
    folders, links = deque([folder]), deque[Path]()
    while folders or links:
        current = folders.popleft() if folders else links.popleft()
        try:
            identity = _identity(current)
            if identity in seen:
                passed_over.append(PassedOver(current, "another path to the same folder"))
                continue
            seen.add(identity)
            entries = list(os.scandir(current))
        except OSError:
            if current == folder:
                raise
            passed_over.append(PassedOver(current, "cannot be read"))
            continue
        for entry in entries:
            path = Path(entry.path)
            if is_hidden(entry.name):
                continue
            # os.path's functions also work for broken links and for links to themselves.
            if os.path.isdir(path):  # noqa: PTH112
                if sub_folders:
                    (links if entry.is_symlink() else folders).append(path)
            elif os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113
                passed_over.append(PassedOver(path, "not a regular file"))  # opening a pipe would block
            elif path.suffix.lower() in endings or _begins_as_an_image(path):
                images.append(path)
            else:
                passed_over.append(PassedOver(path, "no image"))
    return Contents(tuple(sorted(images)), tuple(sorted(passed_over, key=lambda each: each.path)))


def told(passed_over: Sequence[PassedOver], folder: Path) -> str:
    """Summarize what was skipped in one line: the count, and the first names with their reasons."""
    names = [f"{shown(each.path.relative_to(folder))} ({each.reason})" for each in passed_over[:_MOST_NAMES]]
    more = len(passed_over) - len(names)
    return f"{len(passed_over)} skipped in {shown(folder)}: {', '.join(names)}" + (
        f" and {more} more" if more else ""
    )


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _begins_as_an_image(path: Path) -> bool:
    """Check the first bytes, because photographs are also named `IMG_1`, `a.jpg_large` or `b.jpg.1`."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        return False
    return (
        head.startswith(_SIGNATURES)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in _BRANDS)
    )
