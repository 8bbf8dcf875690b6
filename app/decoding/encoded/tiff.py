"""TIFF: the first directory is checked before it is decoded (TIFF 6.0, section 2)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from app.errors import TooLarge, UndecodableImage, UnsupportedMediaType

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

MOST_ENTRIES = 4096
MOST_PIECES = 100_000  # strips or tiles
_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_SHORT = 3
_SUBFILE, _PHOTOMETRIC, _SUBDIRECTORIES, _DNG = 254, 262, 330, 50706
_PIECES = (273, 279, 324, 325)  # offsets and sizes of strips and of tiles
_SENSOR = (32803, 34892)  # color filter array, linear raw


@dataclass(frozen=True, slots=True)
class _Entry:
    tag: int
    kind: int
    count: int
    value: bytes

    def number(self, order: str) -> int:
        """The value, if it is a single number stored in the entry."""
        return int(struct.unpack_from(f"{order}{'H' if self.kind == _SHORT else 'I'}", self.value)[0])


def check_directory(data: bytes) -> None:
    """Raises UnsupportedMediaType for a camera raw file, whose first picture is only a thumbnail, and
    UndecodableImage or TooLarge for a directory that needs more work than its picture can."""
    order = "<" if data.startswith(b"I") else ">"
    try:
        entries = {entry.tag: entry for entry in _entries(data, order)}
    except struct.error:  # the file is truncated, which its decoder will report
        return
    _refuse_raw(entries, order)
    claimed = sum(entry.count * _BYTES.get(entry.kind, 1) for entry in entries.values())
    if claimed > 2 * len(data) + 2**16:  # overlapping entries would be read repeatedly
        raise UndecodableImage(f"the TIFF's first directory claims {claimed} bytes; the file has {len(data)}")
    for tag in _PIECES:
        if tag in entries and entries[tag].count > MOST_PIECES:
            raise TooLarge(
                f"the TIFF has {entries[tag].count} strips or tiles; at most {MOST_PIECES} are allowed"
            )


def _entries(data: bytes, order: str) -> Iterator[_Entry]:
    big = data[2:4] in (b"+\0", b"\0+")
    offset, count, entry = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
    (start,) = struct.unpack_from(f"{order}{offset}", data, 8 if big else 4)
    if start > len(data):
        return
    (number,) = struct.unpack_from(f"{order}{count}", data, start)
    if number > MOST_ENTRIES:
        raise UndecodableImage(
            f"the TIFF's first directory has {number} entries; at most {MOST_ENTRIES} are allowed"
        )
    first, size = start + struct.calcsize(f"={count}"), struct.calcsize(f"={entry}")
    for place in range(first, first + number * size, size):
        yield _Entry(*struct.unpack_from(f"{order}{entry}", data, place))


def _refuse_raw(entries: dict[int, _Entry], order: str) -> None:
    photometric = entries.get(_PHOTOMETRIC)
    subfile = entries.get(_SUBFILE)
    is_thumbnail = subfile is not None and bool(subfile.number(order) & 1) and _SUBDIRECTORIES in entries
    is_sensor = photometric is not None and photometric.number(order) in _SENSOR
    if _DNG in entries or is_sensor or is_thumbnail:
        kind = "DNG" if _DNG in entries else "a camera raw file"
        raise UnsupportedMediaType(
            f"the image is {kind}, which is not supported (its first image is only a thumbnail); export "
            "it as JPEG, PNG or TIFF"
        )
