"""Base64 as clients send it -> the bytes of an image, or an error that says what it is instead.

The one decoder of base64 for every route. White space is ignored (RFC 2045 wraps lines at 76 characters),
both alphabets are accepted (RFC 4648, 4 and 5), padding may be missing, and data URLs (RFC 2397) are
accepted.
"""

import binascii
import re
from collections.abc import Iterator
from itertools import chain
from urllib.parse import unquote_to_bytes

import msgspec

from app.decoding.signatures import begins_as_image
from app.errors import InvalidValue, Problem, UnreadableRequest
from app.http.bodies.documents import LongText

_PIECE = 2**18  # takes about a millisecond, then other threads can run
_WHITE_SPACE = b" \t\r\n\v\f"
_ONE_ALPHABET = bytes.maketrans(b"-_", b"+/")
_DATA_URL = re.compile(rb"\s*data\s*:([^,]{0,200}),", re.IGNORECASE)
_LONGEST_ESCAPE = 6  # \u0000
_MOST_BACKSLASHES = 64
_BLANK_IN_A_LINE = re.compile(rb"\S +\S")
_SHORT = 512  # bytes of text that are checked to describe it in an error

_LOOKS = [
    (re.compile(rb"\s*(?:https?|ftp|s3|gs)://|\s*//[\w.-]+/|\s*www\.", re.I),
     "a URL: the server does not fetch URLs; send the bytes of the image"),
    (re.compile(rb"\s*blob:", re.I),
     "a blob URL, which only the page that made it can read; send the bytes of the image"),
    (re.compile(rb"\s*(?:file:|[/~.][\w./ ~-]*\.\w{2,5}\s*$|/(?:home|tmp|mnt|data|root|var|Users)/"
                rb"|[a-z]:[\\/]|\\\\|[\w .()\\/-]+\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif|heic)\s*$)", re.I),
     "a file name: the server does not read files; send the bytes of the image"),
    (re.compile(rb"\s*b(?P<quote>['\"]).*", re.S),
     "Python's str() of bytes: use base64.b64encode(data).decode()"),
    (re.compile(rb"\s*(?:undefined|null|none|nan|true|false|\[object \w+\]|<[^>]* object at .*)\s*$",
                re.I | re.S),
     "the text of an object or a missing value: send the bytes of the image"),
    (re.compile(rb"\s*[\"']"), "in two pairs of quotation marks: leave out the inner ones"),
    (re.compile(rb"\s*(?:<svg|(?:<\?xml|<!doctype).{0,400}?<svg)", re.I | re.S),
     "an SVG drawing: render it and send it as PNG"),
    (re.compile(rb"\s*(?:<\?xml|<!doctype|<html)", re.I),
     "an HTML or XML page, often an error page instead of an image: check what was downloaded"),
    (re.compile(rb"\s*[\[{(]?\s*\d{1,3}(?:[\s,]+\d{1,3}){3,}"),
     "a list of numbers: send the bytes of the encoded image"),
]  # fmt: skip


def from_base64(text: object, index: int | None, name: str = "image") -> bytearray:
    """The bytes of the image at this index. Raises InvalidValue or UnreadableRequest, with the name of the
    member."""
    if isinstance(text, str):
        source = text.encode("utf-8", "surrogatepass")
        pieces = _cut(memoryview(source))
    elif isinstance(text, bytes | bytearray | memoryview):
        pieces = _cut(memoryview(text))
    elif isinstance(text, LongText):
        pieces = _unescaped(text.view)
    elif isinstance(text, list) and text and isinstance(text[0], int):
        raise InvalidValue(f"'{name}' must be a base64 string, not a list of numbers", image=index)
    else:
        raise InvalidValue(f"'{name}' must be a base64 string, such as iVBORw0KGgoAAAAN...", image=index)
    beginning = b""
    try:
        first = next(pieces, b"")
        beginning = first[:_SHORT]
        first, percent = _after_data_url(first)
        data = _decoded(first, pieces, percent=percent)
    except (ValueError, msgspec.DecodeError) as error:
        raise UnreadableRequest(f"'{name}' is not base64: {_why(beginning, error)}", image=index) from error
    if not begins_as_image(data) and (look := _look(beginning, data)):
        raise UnreadableRequest(f"'{name}' is not a base64-encoded image: it is {look}", image=index)
    return data


def image_or_problem(text: object, index: int, name: str = "image", *, each: bool) -> bytearray | Problem:
    """As `from_base64`, but an error is returned instead of raised if ``each`` image is to be answered."""
    try:
        return from_base64(text, index, name)
    except Problem as problem:
        if not each:
            raise
        return problem


def look_of(text: bytes | bytearray) -> str | None:
    """A description of a body that is not an image."""
    return _look(bytes(text[:_SHORT]), b"")


def _cut(view: memoryview) -> Iterator[bytes]:
    for start in range(0, len(view), _PIECE):
        yield bytes(view[start : start + _PIECE])


def _unescaped(view: memoryview) -> Iterator[bytes]:
    """The string in pieces without JSON's escapes: some clients write \\/ and \\n in base64."""
    start = 0
    while start < len(view):
        end = min(start + _PIECE, len(view))
        for _ in range(_MOST_BACKSLASHES):
            if end == len(view) or b"\\" not in bytes(view[end - _LONGEST_ESCAPE : end]):
                break
            end = min(end + 1, len(view))
        else:
            raise ValueError("it has too many backslashes")
        piece = bytes(view[start:end])
        if b"\\" in piece:
            piece = msgspec.json.decode(b'"' + piece + b'"', type=str).encode()
        yield piece
        start = end


def _after_data_url(first: bytes) -> tuple[bytes, bool]:
    """The content of a data URL, or of what is not one, and whether it may have percent-escapes."""
    head = _DATA_URL.match(first)
    if head is None:
        return first, False
    if b"base64" not in head[1].lower().replace(b" ", b"").split(b";"):
        raise ValueError("the data URL must be base64-encoded, with ;base64 before the comma")
    return first[head.end() :], True


def _decoded(first: bytes, rest: Iterator[bytes], *, percent: bool) -> bytearray:
    data, left, padding, blanks = bytearray(), b"", 0, _Blanks()
    piece: bytes | None = first
    if percent:
        rest = _without_percent(first, rest)
        piece = next(rest, b"")
    while piece is not None:
        blanks.see(piece)
        piece = piece.translate(_ONE_ALPHABET, _WHITE_SPACE)
        if b"=" in piece or padding:
            piece, _, after = piece.partition(b"=")
            if (padding and (piece or after.strip(b"="))) or after.strip(b"="):
                raise ValueError("there is data after the padding")
            padding += len(after) + (b"=" in after or not padding)
        left += piece
        whole = len(left) - len(left) % 4
        data += binascii.a2b_base64(left[:whole], strict_mode=True)
        left = left[whole:]
        piece = next(rest, None)
    if len(left) == 1:
        raise ValueError("its length is wrong: characters are missing at the end, or there is one too many")
    if padding > (-len(left)) % 4:
        raise ValueError("it has too much padding")
    if left:
        data += binascii.a2b_base64(left + b"=" * (4 - len(left)), strict_mode=True)
    blanks.check()
    return data


def _without_percent(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces with their percent-escapes decoded. No escape is split between two pieces."""
    left = b""
    for piece in chain((first,), rest):
        piece = left + piece
        escape = piece.find(b"%", max(0, len(piece) - 2))
        end = len(piece) if escape < 0 else escape
        left = piece[end:]
        yield unquote_to_bytes(piece[:end]) if b"%" in piece else piece[:end]
    yield left


class _Blanks:
    """Detects blanks that a form made of +. Without them, the base64 would be another image."""

    def __init__(self) -> None:
        self._pluses = self._lost = self._length = 0

    def see(self, piece: bytes) -> None:
        """Count the next piece."""
        self._length += len(piece)
        self._pluses += piece.count(b"+") + piece.count(b"-")
        if b" " in piece and _BLANK_IN_A_LINE.search(piece):
            lines = piece.split()
            widths = {len(line) for line in lines[1:-1]}
            if len(widths) > 1 or (len(lines) == 2 and len(lines[0]) % 4):
                self._lost += 1

    def check(self) -> None:
        """Raises ValueError."""
        if self._lost and not self._pluses:
            raise ValueError(
                "it has spaces but no +; URL-encoded forms turn + into spaces: encode + as %2B, or send JSON"
            )


def _why(beginning: bytes, error: Exception) -> str:
    look = _look(beginning, b"")
    return f"it is {look}" if look else f"{error}; in Python, use base64.b64encode(data).decode()"


def _look(beginning: bytes, data: bytes | bytearray) -> str | None:
    """A description of text that is not an image in base64."""
    for pattern, words in _LOOKS:
        if pattern.match(beginning):
            return words
    plain = beginning.translate(None, _WHITE_SPACE)
    digits = plain.removeprefix(b"0x")[:64]
    if (
        re.fullmatch(rb"[0-9a-fA-F]{8,64}", digits)
        and len(digits) % 2 == 0
        and begins_as_image(bytes.fromhex(digits.decode()))
    ):
        return "hexadecimal; encode the bytes as base64"
    try:
        again = binascii.a2b_base64(bytes(data[:64]).translate(_ONE_ALPHABET, _WHITE_SPACE), strict_mode=True)
    except ValueError:
        return None
    return "encoded as base64 twice; encode the bytes once" if begins_as_image(again) else None
