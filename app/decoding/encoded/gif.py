"""GIF: removes comments and other extensions before the first frame."""

from app.errors import UndecodableImage

SIGNATURES = (b"GIF87a", b"GIF89a")

# This many full blocks of 255 bytes are 50 MB.
MOST_BLOCKS = 200_000
_HEAD = 13
_EXTENSION, _FRAME, _GRAPHIC_CONTROL = 0x21, 0x2C, 0xF9


def without_extensions(data: bytes) -> bytes:
    """The same picture with only the extension that says how its first frame is shown. Truncated or broken
    data is left to the decoder. Raises UndecodableImage for too many blocks."""
    if len(data) < _HEAD:
        return data
    flags = data[10]
    start = _HEAD + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
    place, blocks, control = start, 0, b""
    while place + 1 < len(data) and data[place] == _EXTENSION:
        kind, begin = data[place + 1], place
        place += 2
        while place < len(data) and data[place]:
            place += 1 + data[place]
            blocks += 1
            if blocks > MOST_BLOCKS:
                raise UndecodableImage(
                    f"the GIF has more than {MOST_BLOCKS} blocks before its first frame; save it again"
                )
        place += 1
        blocks += 1
        if kind == _GRAPHIC_CONTROL:
            control = data[begin:place]
    if place >= len(data) or data[place] != _FRAME:
        return data
    return data if place == start else b"".join((data[:start], control, memoryview(data)[place:]))
