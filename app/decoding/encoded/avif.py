"""AVIF: the numbers of its color space (ISO/IEC 14496-12, 12.1.5; ITU-T H.273), which Pillow does not
return."""

import struct
from collections.abc import Iterator

_KIND = slice(4, 8)
_BRANDS = slice(8, 12)
_HEADER = struct.Struct(">I4s")
_LARGE_SIZE = struct.Struct(">Q")
_NUMBERS = struct.Struct(">HH")
_MOST_BOXES = 1000
_VERSION_BYTES = 4  # the box `meta` starts with a version


def is_avif(data: bytes) -> bool:
    """Whether the bytes begin like an AVIF."""
    return data[_KIND] == b"ftyp" and data[_BRANDS] in (b"avif", b"avis", b"mif1", b"msf1")


def colour_numbers(data: bytes) -> tuple[int, int] | None:
    """The color primaries and transfer characteristics of the first property that names them. None if there
    is none, or if there is also a color profile."""
    place, end = 0, len(data)
    for path in (b"meta", b"iprp", b"ipco"):
        found = next((box for box in _boxes(data, place, end) if box[0] == path), None)
        if found is None:
            return None
        _, place, end = found
        place += _VERSION_BYTES * (path == b"meta")
    colours = [data[begin:stop] for kind, begin, stop in _boxes(data, place, end) if kind == b"colr"]
    if any(colour[:4] in (b"prof", b"rICC") for colour in colours):
        return None
    named = next((colour for colour in colours if colour[:4] == b"nclx"), b"")
    if len(named) < 4 + _NUMBERS.size:
        return None
    primaries, transfer = _NUMBERS.unpack_from(named, 4)
    return primaries, transfer


def _boxes(data: bytes, place: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes in this range: their kind, and the begin and end of their content. It stops at a broken
    box."""
    for _ in range(_MOST_BOXES):
        if place + _HEADER.size > end:
            return
        size, kind = _HEADER.unpack_from(data, place)
        begin = place + _HEADER.size
        if size == 1 and begin + _LARGE_SIZE.size <= end:
            (size,) = _LARGE_SIZE.unpack_from(data, begin)
            begin += _LARGE_SIZE.size
        stop = end if size == 0 else place + size
        if not begin <= stop <= end:
            return
        yield kind, begin, stop
        place = stop
