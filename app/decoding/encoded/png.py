"""PNG: removes text and later frames, before anything reads or inflates them. It also removes what browsers
ignore: chunks in a wrong place, of a wrong length, or duplicates."""

import struct
import zlib
from collections.abc import Container, Sequence

from app.errors import UndecodableImage
from models.colour import LONGEST_PROFILE, warn_of_unconverted_colours
from models.samples import Say

SIGNATURE = b"\x89PNG\r\n\x1a\n"

# A PNG of 32 MB in chunks of 8 KB, which is usual for encoders, has 4,000.
MOST_CHUNKS = 50_000
_FRAME = struct.Struct(">I4s")
_CRC_BYTES = 4
# The chunks that affect the pixels. Text, times, histograms and later frames do not.
_KEPT = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"eXIf"))
_HEEDED = _KEPT | {b"cICP"}
_LONGEST_EXIF = 2**20
_TWICE = frozenset((b"IDAT",))
_BEHIND_PIXELS = frozenset((b"IDAT", b"IEND", b"eXIf"))
_LENGTHS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1}
_TRANSPARENT_BYTES = {0: 2, 2: 6}  # length of tRNS by color type
_COLOUR_TYPE_AT, _PALETTE = 25, 3
# White, red, green and blue of sRGB as in cHRM, and the allowed deviation.
_SRGB = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
_PRIMARIES = struct.Struct(">8I")
_ABOUT = 1000
_NUMBERS_BYTES = 2  # of cICP: color primaries and transfer function
# Transfer functions that are a power (ITU-T H.273, table 3), with the gamma in the units of gAMA.
_GAMMAS = {4: 45_455, 5: 35_714, 8: 100_000}
_SRGB_TRANSFER = 13


def without_extras(data: bytes, say: Say) -> bytes:
    """The same picture without text and later frames. Truncated data is left to the decoder. ``say`` is
    called if the color profile cannot be used.

    Raises UndecodableImage for too many chunks.
    """
    view = memoryview(data)
    kept, place, left_out, chunks = [view[: len(SIGNATURE)]], len(SIGNATURE), False, 0
    found: dict[bytes, bytes] = {}  # the start of the first chunk of each relevant kind
    while place + _FRAME.size <= len(data):
        length, kind = _FRAME.unpack_from(data, place)
        end = place + _FRAME.size + length + _CRC_BYTES
        if end > len(data):
            break
        chunks += 1
        if chunks > MOST_CHUNKS:
            raise UndecodableImage(f"the PNG has more than {MOST_CHUNKS} chunks; save it again")
        chunk = view[place:end]
        has_place = _has_its_place(kind, length, found, data)
        if has_place and kind == b"iCCP" and not _is_usable_profile(chunk):
            say("the image's color profile is corrupt or too large, and was ignored")
            has_place = False
        if has_place and kind in _HEEDED:
            found.setdefault(kind, bytes(chunk[_FRAME.size : -_CRC_BYTES][: _PRIMARIES.size]))
        if has_place and kind in _KEPT:
            kept.append(chunk)
        else:
            left_out = True
        place = end
        if kind == b"IEND":
            break
    _say_what_is_not_converted(found, say)
    if not left_out:
        return data
    rest = b"" if bytes(kept[-1][4:8]) == b"IEND" else view[place:]
    return b"".join((*_with_the_gamma_of_numbers(kept, found), rest))


def _has_its_place(kind: bytes, length: int, before: Container[bytes], data: bytes) -> bool:
    """Whether browsers heed a chunk of that kind and length behind those. Raises UndecodableImage for pixels
    whose palette is missing, which Pillow shows in black."""
    colour_type = data[_COLOUR_TYPE_AT] if len(data) > _COLOUR_TYPE_AT else 0
    if colour_type == _PALETTE and b"PLTE" not in before:
        if kind == b"IDAT":
            raise UndecodableImage("the PNG has no palette before its pixels; save it again")
        if kind == b"tRNS":
            return False
    if kind == b"tRNS" and length != _TRANSPARENT_BYTES.get(colour_type, length):
        return False
    if kind == b"eXIf" and length > _LONGEST_EXIF:
        return False
    is_late = b"IDAT" in before and kind not in _BEHIND_PIXELS
    is_again = kind in before and kind not in _TWICE
    return not is_late and not is_again and length == _LENGTHS.get(kind, length)


def _with_the_gamma_of_numbers(
    kept: list[memoryview], found: dict[bytes, bytes]
) -> Sequence[memoryview | bytes]:
    """cICP comes before gAMA and sRGB (PNG, 4.3). A profile is converted all the same."""
    numbers = found.get(b"cICP", b"")
    if b"iCCP" in found or len(numbers) < _NUMBERS_BYTES:
        return kept
    others = [chunk for chunk in kept if bytes(chunk[4:8]) not in (b"gAMA", b"sRGB")]
    if (gamma := _GAMMAS.get(numbers[1])) is None:
        return others
    content = b"gAMA" + struct.pack(">I", gamma)
    return [*others[:2], struct.pack(">I", 4) + content + struct.pack(">I", zlib.crc32(content)), *others[2:]]


def _say_what_is_not_converted(colours: dict[bytes, bytes], say: Say) -> None:
    """Warn about colors that are not described by a profile (PNG, 11.3.2). A profile is converted."""
    if b"iCCP" in colours:
        return
    numbers, primaries = colours.get(b"cICP", b""), colours.get(b"cHRM", b"")
    if len(numbers) >= _NUMBERS_BYTES:
        warn_of_unconverted_colours(numbers[0], _SRGB_TRANSFER if numbers[1] in _GAMMAS else numbers[1], say)
    elif b"sRGB" not in colours and len(primaries) == _PRIMARIES.size:
        apart = zip(_PRIMARIES.unpack(primaries), _SRGB, strict=True)
        if max(abs(value - srgb) for value, srgb in apart) > _ABOUT:
            say("the PNG has other primaries than sRGB (cHRM), which are ignored: its colors may be off")


def _is_usable_profile(chunk: memoryview) -> bool:
    """Whether the color profile can be used. An image with a broken or too large profile is still decoded."""
    name, _, packed = bytes(chunk[_FRAME.size : -_CRC_BYTES]).partition(b"\0")
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(packed[1:], LONGEST_PROFILE + 1)
    except zlib.error:
        return False
    return bool(name) and inflater.eof and len(profile) <= LONGEST_PROFILE
