"""PNG: text and later frames are left out, before anything reads or inflates them."""

import struct
import zlib

from app.errors import UndecodableImage
from models.colour import LONGEST_PROFILE
from models.samples import Say

SIGNATURE = b"\x89PNG\r\n\x1a\n"

# A PNG of 32 MB in chunks of 8 KB, as encoders write them, has 4,000.
MOST_CHUNKS = 50_000
_FRAME = struct.Struct(">I4s")
_CRC_BYTES = 4
# All that decides what the picture looks like. Text, times, histograms and later frames do not.
_KEPT = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"eXIf"))
_LONGEST_EXIF = 2**20


def without_extras(data: bytes, say: Say) -> bytes:
    """The same picture; what is cut stays for the decoder to judge. ``say`` hears of a color profile that
    cannot be used.

    Raises UndecodableImage for too many chunks.
    """
    view = memoryview(data)
    kept, place, left_out, chunks = [view[: len(SIGNATURE)]], len(SIGNATURE), False, 0
    while place + _FRAME.size <= len(data):
        length, kind = _FRAME.unpack_from(data, place)
        end = place + _FRAME.size + length + _CRC_BYTES
        if end > len(data):
            break
        chunks += 1
        if chunks > MOST_CHUNKS:
            raise UndecodableImage(f"the PNG has more than {MOST_CHUNKS} chunks; save it again")
        chunk = view[place:end]
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
    if not left_out:
        return data
    rest = b"" if bytes(kept[-1][4:8]) == b"IEND" else view[place:]
    return b"".join((*kept, rest))


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
