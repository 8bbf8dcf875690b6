"""JPEG: reads its markers before anything is decoded (ITU-T T.81, annex B)."""

import re
import struct
from dataclasses import dataclass, replace

from app.errors import TooLarge, UndecodableImage

SIGNATURE = b"\xff\xd8\xff"

MOST_SEGMENTS = 10_000
# Encoders write about ten. Each is a pass over the whole image, even if it has few bytes.
MOST_SCANS = 500
_SCANS_OF_THE_MOST_PIXELS = 20
# The decoder keeps a progressive image in memory, as coefficients of two bytes. They may take half of the
# memory for the maximum number of pixels.
_COEFFICIENT_BYTES, _COEFFICIENT_BYTES_PER_PIXEL = 2, 12
_MOST_EXIF_SEGMENTS = 16

_SOI, _EOI, _SOS = b"\xff\xd8", 0xD9, 0xDA
# End of image, restarts and another start of image.
_NOT_BEFORE_PIXELS = frozenset((_EOI, *range(0xD0, 0xD9)))
_APP1, _EXIF, _XMP = 0xE1, b"Exif\0", b"http://ns.adobe.com/xap/1.0/"
_APP2, _ICC = 0xE2, b"ICC_PROFILE\0"
_TABLES = frozenset((0xC4, 0xCC, 0xDB, 0xDD))  # Huffman, arithmetic, quantisation, restart interval
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_DECODABLE_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_PROGRESSIVE = {0xC2, 0xCA}
_LOSSLESS = {0xC3, 0xCB, 0xF7}
_FILL = re.compile(rb"\xff+")
# Within the compressed data, FF 00 is a data byte, and D0 to D7 are restarts.
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
_LENGTH = struct.Struct(">H")


@dataclass(frozen=True, slots=True)
class Frame:
    """The frame header of a JPEG. ``sampling``: the horizontal and vertical sampling factor of each
    component."""

    marker: int
    bits: int
    width: int
    height: int
    sampling: tuple[tuple[int, int], ...]

    @property
    def coefficients(self) -> int:
        """The approximate number of coefficients of all components."""
        across = max((across for across, _ in self.sampling), default=1)
        down = max((down for _, down in self.sampling), default=1)
        parts = sum(one * other for one, other in self.sampling)
        return self.width * self.height * parts // max(1, across * down)


@dataclass(frozen=True, slots=True)
class Jpeg:
    """``data``: the same picture without comments and similar segments. ``frame``: None if the markers before
    it are broken. ``several_scans``: the first scan has only part of the data of a pixel. ``lacks_profile``:
    parts of its color profile are missing."""

    data: bytes
    frame: Frame | None = None
    several_scans: bool = False
    scans: int = 1
    lacks_profile: bool = False


def read(data: bytes, most_pixels: int) -> Jpeg:
    """Read the JPEG. Truncated or broken data is left to the decoder.

    Raises UndecodableImage for a kind that cannot be decoded, and TooLarge if decoding takes more work than
    ``most_pixels`` can need.
    """
    jpeg, start = _head(data)
    if jpeg.frame is not None:
        _check_kind(jpeg.frame)
        if jpeg.several_scans:
            scans = _count_scans(data, start)
            _check_work(jpeg.frame, scans, most_pixels)
            return replace(jpeg, scans=scans)
    return jpeg


def _head(data: bytes) -> tuple[Jpeg, int]:
    """The segments before the pixels, and where the pixels begin."""
    kept: list[tuple[int, int]] = []  # start and end of the segments to keep
    place, left_out = 2, False
    frame, exifs, xmps = None, 0, 0
    profile: set[bytes] = set()  # number and count of each of its parts
    for _ in range(MOST_SEGMENTS):
        fill = _FILL.match(data, place)
        if fill is None or fill.end() + 3 > len(data):
            return Jpeg(data, frame), len(data)
        left_out |= fill.end() - place > 1
        place = fill.end()
        marker, end = data[place], place + 1 + (data[place + 1] << 8 | data[place + 2])
        if marker in _NOT_BEFORE_PIXELS or end > len(data):
            return Jpeg(data, frame), len(data)
        if marker == _SOS:
            several = frame is not None and (
                frame.marker in _PROGRESSIVE or data[place + 3] < len(frame.sampling)
            )
            picture = _without_the_rest(data, kept, place - 1) if left_out else data
            lacks_profile = any(len(profile) != part[-1] for part in profile)
            return Jpeg(picture, frame, several, lacks_profile=lacks_profile), end
        if marker in _TABLES:
            needed = True
        else:
            if marker in _FRAMES or marker in _LOSSLESS:
                frame = _frame(marker, data[place + 3 : end])
            content = data[place + 3 : min(place + 39, end)]
            needed = _is_needed(marker, content)
            if needed and marker == _APP1:
                exifs += content.startswith(_EXIF)
                xmps += content.startswith(_XMP)
                needed = exifs <= _MOST_EXIF_SEGMENTS if content.startswith(_EXIF) else xmps <= 1
            if needed and marker == _APP2:  # Pillow discards the profile if a part occurs twice
                part = content[len(_ICC) : len(_ICC) + 2]
                needed = len(part) == 2 and part not in profile
                profile |= {part} if needed else set()
        if needed:
            kept.append((place - 1, end))
        else:
            left_out = True
        place = end
    raise UndecodableImage(
        f"the JPEG has more than {MOST_SEGMENTS} segments before its pixels; save it again"
    )


def _without_the_rest(data: bytes, kept: list[tuple[int, int]], pixels: int) -> bytes:
    """The segments that are kept, and everything from the start of the pixels on."""
    view = memoryview(data)
    return b"".join((_SOI, *(view[begin:end] for begin, end in kept), view[pixels:]))


def _is_needed(marker: int, content: bytes) -> bool:
    """Whether a segment that is not a table affects the picture: comments and metadata of editors do not."""
    match marker:
        case 0xE0:
            return content.startswith(b"JFIF")
        case 0xE1:  # _APP1
            return content.startswith((_EXIF, _XMP))
        case 0xE2:  # _APP2
            return content.startswith(_ICC)
        case 0xEE:
            return content.startswith(b"Adobe")
    return marker in _FRAMES


def _frame(marker: int, header: bytes) -> Frame | None:
    if len(header) < 6 or len(header) < 6 + 3 * header[5]:
        return None
    bits, height, width, components = struct.unpack_from(">BHHB", header)
    sampling = tuple((header[7 + 3 * index] >> 4, header[7 + 3 * index] & 15) for index in range(components))
    return Frame(marker, bits, width, height, sampling)


def _check_kind(frame: Frame) -> None:
    kind = ""
    if frame.marker in _LOSSLESS:
        kind = "is lossless"
    elif frame.marker not in _DECODABLE_FRAMES:
        kind = "is hierarchical"
    elif frame.bits != 8:
        kind = f"has {frame.bits} bits per sample"
    if kind:
        raise UndecodableImage(
            f"the JPEG {kind}, which is not supported; save it as a baseline JPEG with 8 bits per sample, "
            "or as PNG"
        )


def _count_scans(data: bytes, start: int) -> int:
    """The number of scans, the first of which begins there. Counting stops at one too many."""
    scans, place = 1, start
    for _ in range(MOST_SEGMENTS):
        found = _MARKER.search(data, place)
        if found is None or found[1][0] == _EOI or found.end() + 2 > len(data):
            return scans
        scans += found[1][0] == _SOS
        place = found.end() + _LENGTH.unpack_from(data, found.end())[0]
        if scans > MOST_SCANS:
            return scans
    raise UndecodableImage(f"the JPEG has more than {MOST_SEGMENTS} segments; save it again")


def _check_work(frame: Frame, scans: int, most_pixels: int) -> None:
    needed, allowed = frame.coefficients * _COEFFICIENT_BYTES, _COEFFICIENT_BYTES_PER_PIXEL * most_pixels
    if needed > allowed:
        raise TooLarge(
            f"the progressive JPEG of {frame.width} x {frame.height} pixels takes {needed // 10**6} MB "
            f"to decode; at most {allowed // 10**6} MB are allowed: save it "
            "as a baseline JPEG"
        )
    pixels = max(1, frame.width * frame.height)
    most = min(MOST_SCANS, max(1, _SCANS_OF_THE_MOST_PIXELS * most_pixels // pixels))
    if scans > most:
        raise TooLarge(
            f"the progressive JPEG of {frame.width} x {frame.height} pixels has {scans} scans or more; at "
            f"most {most} are allowed: save it as a baseline JPEG"
        )
