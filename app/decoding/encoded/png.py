"""PNG: text and later frames are left out, before anything reads or inflates them."""

import struct
import zlib

from app.errors import UndecodableImage
from models.colour import LONGEST_PROFILE, say_what_numbers_mean
from models.samples import Say

SIGNATURE = b"\x89PNG\r\n\x1a\n"

# A PNG of 32 MB in chunks of 8 KB, as encoders write them, has 4,000.
MOST_CHUNKS = 50_000
_FRAME = struct.Struct(">I4s")
_CRC_BYTES = 4
# All that decides what the picture looks like. Text, times, histograms and later frames do not.
_KEPT = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"eXIf"))
_LONGEST_EXIF = 2**20
_SAY_THE_COLOURS = (b"cICP", b"cHRM", b"sRGB", b"iCCP")
# White, red, green and blue of sRGB, as cHRM has them, and how far a value may be from them.
_SRGB = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
_PRIMARIES = struct.Struct(">8I")
_ABOUT = 1000
_NUMBERS_BYTES = 2  # of cICP: primaries and transfer function


def without_extras(data: bytes, say: Say) -> bytes:
    """The same picture; what is cut stays for the decoder to judge. ``say`` hears of a color profile that
    cannot be used.

    Raises UndecodableImage for too many chunks.
    """
    view = memoryview(data)
    kept, place, left_out, chunks = [view[: len(SIGNATURE)]], len(SIGNATURE), False, 0
    colours: dict[bytes, bytes] = {}
    while place + _FRAME.size <= len(data):
        length, kind = _FRAME.unpack_from(data, place)
        end = place + _FRAME.size + length + _CRC_BYTES
        if end > len(data):
            break
        chunks += 1
        if chunks > MOST_CHUNKS:
            raise UndecodableImage(f"the PNG has more than {MOST_CHUNKS} chunks; save it again")
        chunk = view[place:end]
        if kind in _SAY_THE_COLOURS:
            colours.setdefault(kind, bytes(chunk[_FRAME.size : -_CRC_BYTES][: _PRIMARIES.size]))
        if kind in _KEPT and _is_usable(kind, chunk):
            kept.append(chunk)
        elif kind == b"iCCP":
            say("the image's color profile is corrupt or too large, and was ignored")
            left_out = True
        else:
            left_out = True
        place = end
        if kind == b"IEND":
            break
    _say_what_is_not_converted(colours, say)
    if not left_out:
        return data
    rest = b"" if bytes(kept[-1][4:8]) == b"IEND" else view[place:]
    return b"".join((*kept, rest))


def _say_what_is_not_converted(colours: dict[bytes, bytes], say: Say) -> None:
    """Colours that a PNG names otherwise than by a profile (PNG, 11.3.2); a profile is converted."""
    if b"iCCP" in colours:
        return
    numbers, primaries = colours.get(b"cICP", b""), colours.get(b"cHRM", b"")
    if len(numbers) >= _NUMBERS_BYTES:
        say_what_numbers_mean(numbers[0], numbers[1], say)
    elif b"sRGB" not in colours and len(primaries) == _PRIMARIES.size:
        apart = zip(_PRIMARIES.unpack(primaries), _SRGB, strict=True)
        if max(abs(value - srgb) for value, srgb in apart) > _ABOUT:
            say("the PNG has other primaries than sRGB (cHRM), which are ignored: its colors may be off")


def _is_usable(kind: bytes, chunk: memoryview) -> bool:
    """A profile that is broken or too large does not cost the picture."""
    if kind == b"eXIf":
        return len(chunk) <= _LONGEST_EXIF
    if kind != b"iCCP":
        return True
    name, _, packed = bytes(chunk[_FRAME.size : -_CRC_BYTES]).partition(b"\0")
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(packed[1:], LONGEST_PROFILE + 1)
    except zlib.error:
        return False
    return bool(name) and inflater.eof and len(profile) <= LONGEST_PROFILE
