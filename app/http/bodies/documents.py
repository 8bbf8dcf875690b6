"""A JSON body -> its value, without copies of the images in it.

A string of megabytes is an image in base64. It stays in the body, and the value has a LongText in its place.
So no parser reads it, and nothing holds the interpreter lock for longer than a small document needs, however
large the body is.
"""

import json
import re
import secrets
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from app.decoding.signatures import begins_as_image
from app.errors import TooLarge, UnreadableRequest
from app.wrong_values import short

_CHECKED = 2**20  # bytes of JSON that are checked for duplicate names
_MOST_ESCAPES = 4096  # escaped quotes in one string, and backslashes before a quote
_LONG = 8192  # bytes of a long string; an ID may have 1,024 characters
_PLACE = re.compile(r" \(byte (\d+)\)$")
_SHOWN = 60  # bytes of invalid JSON that an error shows, so that a long name is shown completely
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Encodings of JSON (RFC 4627) and their byte-order marks. Marks of four bytes start like those of two.
_WIDE = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"{\0\0\0": "utf-32-le",
    b"\0\0\0{": "utf-32-be",
    b"{\0": "utf-16-le",
    b"\0{": "utf-16-be",
}


class LongText:
    """A long string of a document, as it is in the body: in UTF-8, with JSON's escapes."""

    def __init__(self, view: memoryview) -> None:
        self.view = view

    def __repr__(self) -> str:
        return short.repr(str(self))

    def __str__(self) -> str:
        """Its beginning and its end."""
        begin, end = (bytes(part).decode("utf-8", "replace") for part in (self.view[:100], self.view[-100:]))
        return f"{begin}...{end}"


def read_document(body: bytes | bytearray, what: str, most_bytes: int, most_values: int, hint: str) -> Any:
    """The value of a document. It may have this many bytes in addition to its long strings, and this many
    values.

    Raises UnreadableRequest, and TooLarge with the ``hint``.
    """
    try:
        text = _as_utf8(body)
        rest, views = _without_long_texts(memoryview(text), most_bytes)
    except UnicodeDecodeError as error:
        raise UnreadableRequest(f"{what} is not JSON: {error}{_advice(body)}") from error
    if rest is None:
        if begins_as_image(body):
            raise UnreadableRequest(f"{what} is not JSON{_advice(body)}")
        raise TooLarge(f"{what} has more than {most_bytes} bytes of JSON in addition to images; {hint}")
    # Commas in strings are counted, too, but neither base64 nor options contain any.
    if rest.count(b",") > most_values:
        raise TooLarge(f"{what} has more than {most_values} values; {hint}")
    try:
        value = msgspec.json.decode(rest)
        if len(rest) <= _CHECKED:
            json.loads(rest, object_pairs_hook=_only_once)
        return _filled_in(value, views) if views else value
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        why = _fault(rest) or _at(str(error), rest, views)
        raise UnreadableRequest(f"{what} is not JSON: {why}{_advice(text)}") from error
    except RecursionError as error:
        # Python versions differ in their recursion limits, for the parser and for later processing.
        raise UnreadableRequest(
            f"{what} is nested too deeply; options are values and lists of values, not lists in lists"
        ) from error


def _at(why: str, rest: bytes, views: Collection[str]) -> str:
    """The parser's message with the text at the position that it names, which does not count long strings."""
    found = _PLACE.search(why)
    if found is None:
        return why
    place = int(found[1])
    there = rest[place : place + _SHOWN].decode("utf-8", "replace")
    if not there:
        return why[: found.start()]
    for name in views:
        there = there.replace(name, "...")
    return f"{why[: found.start()]}, at {short.repr(there)}"


def _fault(text: bytes) -> UnicodeDecodeError | None:
    """Where the document is not UTF-8, which msgspec does not always say. None if all of it is."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error
    return None


def _as_utf8(body: bytes | bytearray) -> bytes | bytearray | memoryview:
    """The document as UTF-8. JSON is UTF-8, but Windows tools write UTF-16, and byte order marks before
    either."""
    if body.startswith(_BYTE_ORDER_MARK):
        return memoryview(body)[len(_BYTE_ORDER_MARK) :]
    for mark, encoding in _WIDE.items():
        if body.startswith(mark):
            return body.decode(encoding).encode()
    return body


def _without_long_texts(text: memoryview, most_bytes: int) -> tuple[bytes | None, dict[str, LongText]]:
    """The document with a name in the place of each long string. None if the rest is too long."""
    if len(text) <= _LONG:
        return bytes(text), {}
    whole = text.obj
    assert isinstance(whole, bytes | bytearray)
    offset = len(whole) - len(text)
    nonce = secrets.token_hex(8)
    views: dict[str, LongText] = {}
    rest, copied, place = bytearray(), offset, offset
    while (start := whole.find(b'"', place)) >= 0:
        end = _closing(whole, start + 1)
        if end - start > _LONG:
            name = f"{nonce}:{len(views)}"
            views[name] = LongText(memoryview(whole)[start + 1 : end])
            rest += memoryview(whole)[copied : start + 1]
            rest += name.encode()
            copied = end
        if len(rest) + start - copied > most_bytes:
            return None, views
        place = end + 1
    if len(rest) + len(whole) - copied > most_bytes:
        return None, views
    rest += memoryview(whole)[copied:]
    return bytes(rest), views


def _closing(text: bytes | bytearray, place: int) -> int:
    """Where the string that begins here ends: at a quote that is preceded by no backslash, or by an even
    number. Raises UnreadableRequest if that would take long to find out."""
    for _ in range(_MOST_ESCAPES):
        quote = text.find(b'"', place)
        if quote < 0:
            return len(text)
        begin = max(place, quote - _MOST_ESCAPES)
        backslashes = quote - begin - len(text[begin:quote].rstrip(b"\\"))
        if backslashes == _MOST_ESCAPES:
            break
        if backslashes % 2 == 0:
            return quote
        place = quote + 1
    raise UnreadableRequest("a string of the JSON has too many backslashes to be base64 or an option")


def _filled_in(value: Any, views: dict[str, LongText]) -> Any:
    """The value with its long strings. Names of members that are so long are cut."""
    get: Callable[[str], LongText | None] = views.get
    if isinstance(value, str):
        return get(value) or value
    if isinstance(value, list):
        return [_filled_in(item, views) for item in value]
    if isinstance(value, dict):
        return {str(get(name) or name): _filled_in(item, views) for name, item in value.items()}
    return value


def _only_once(members: list[tuple[str, Any]]) -> None:
    """Refuse a name that occurs twice: a parser takes the second value, and the sender may mean the first.
    Raises UnreadableRequest."""
    names = set()
    for name, _ in members:
        if name in names:
            raise UnreadableRequest(f"{short.repr(name)} is given more than once in one object")
        names.add(name)


def _advice(text: bytes | bytearray | memoryview) -> str:
    """Advice for data that clients send by mistake in place of JSON."""
    begin = bytes(text[:200]).lstrip()
    if begins_as_image(begin):
        return " (the body is an image: POST /v1/classify takes it as it is; here, send it in base64 in JSON)"
    if begin.startswith(b"--"):
        return " (the body seems to be a form, which POST /v1/classify takes)"
    if not begin:
        return " (the body is empty)"
    if begin.startswith((b"'", b"{'")):
        return " (names and strings must be in double quotes: in Python, use json.dumps(...))"
    if begin.startswith(b"@"):
        return " (curl reads the file after @ only with --data or --data-binary)"
    return ""
