"""multipart/form-data -> its parts, as clients write it and not only as RFC 7578 defines it.

Also accepted: line ends without CR, text before the first boundary and after the last, no last boundary,
parts in base64 or quoted-printable (RFC 2045), parts within a multipart/mixed part (RFC 2388), names in the
forms of RFC 8187, folded header lines. The data is not read byte by byte or line by line: boundaries are
searched for, and the data of a part is a view of the body.
"""

import quopri
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.errors import MessageError
from email.message import Message
from email.parser import HeaderParser

from app.decoding.images import Data
from app.decoding.signatures import begins_as_image
from app.errors import TooLarge, UnreadableRequest
from app.http.bodies.base64_images import from_base64
from app.wrong_values import short

_LONGEST_HEAD = 4096  # bytes of a part's header lines, whose parser takes quadratic time
_LONGEST_BOUNDARY = 200  # RFC 2046 allows 70
_MOST_FALSE = 10_000  # occurrences of the boundary within data
_MOST_QUOTED = 2**20  # bytes of quoted-printable data, which is meant for text
_LINE_END = re.compile(rb"[ \t]*(\r?\n)")
_HEAD_FOLLOWS = re.compile(rb"[ \t]*\r?\n(?=content-)", re.IGNORECASE)
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_HEADERS = HeaderParser()
_OWN_HEADER = re.compile(rb"--([^\r\n]{1,200}?)[ \t]*\r?\n(?:content-|\r?\n)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a form. ``filename``: None if it has none, empty if a browser's file field was left empty.
    ``kind``: its Content-Type in lower case, or empty."""

    name: str
    filename: str | None
    kind: str
    data: Data

    @property
    def is_file(self) -> bool:
        """Whether it is an image according to its headers or its bytes."""
        return (
            bool(self.filename)
            or self.kind.startswith("image/")
            or self.kind == "application/octet-stream"
            or begins_as_image(self.data)
        )

    @property
    def is_left_empty(self) -> bool:
        """Whether it is a browser's file field for which no file was chosen."""
        return self.filename == "" and not len(self.data)

    @property
    def text(self) -> str:
        """Its data as text. Raises UnreadableRequest."""
        try:
            return str(self.data, "utf-8")
        except UnicodeDecodeError as error:
            raise UnreadableRequest(
                f"the form field {short.repr(self.name)} is not UTF-8: {error}"
            ) from error


def read_form(
    body: bytes | bytearray, content_type: str, most_parts: int, hold: Callable[[int], None]
) -> list[Part]:
    """The parts of a form with this Content-Type. ``hold`` is called with the size of memory that is needed
    in addition to the body. Raises UnreadableRequest, and TooLarge for too many parts."""
    boundary = _boundary(content_type, body)
    return list(_parts(body, 0, len(body), boundary, _Left(most_parts, hold), nested=False))


def _boundary(content_type: str, body: bytes | bytearray) -> bytes:
    try:
        boundary = _parameter(
            _message(b"Content-Type: " + content_type.encode("latin-1", "replace")), "boundary"
        )
    except UnreadableRequest:
        boundary = None
    if not boundary:
        found = _OWN_HEADER.match(bytes(body[:400]))
        seen = f", which is {short.repr(found[1].decode('latin-1'))} in this body" if found else ""
        raise UnreadableRequest(
            f"the Content-Type of the form has no boundary{seen}: let your HTTP client write that header "
            "itself (curl -F, files= in requests and httpx, FormData in fetch) and do not set it yourself"
        )
    if len(boundary) > _LONGEST_BOUNDARY:
        raise UnreadableRequest(f"the boundary of the form has more than {_LONGEST_BOUNDARY} characters")
    return boundary.rstrip(" ").encode("latin-1", "replace")


def _parts(
    body: bytes | bytearray, start: int, stop: int, boundary: bytes, left: "_Left", *, nested: bool
) -> Iterator[Part]:
    """The parts between boundaries. ``left``: how many more are allowed."""
    view = memoryview(body)
    delimiters = _delimiters(body, start, stop, boundary)
    opened = next(delimiters, None)
    if opened is None:
        if nested or not body:
            return
        raise UnreadableRequest(
            f"the form cannot be read: its boundary {short.repr(boundary.decode('latin-1'))} does not occur "
            f"in the body, which begins with {short.repr(bytes(body[:40]))}"
        )
    while opened is not None and not opened.last:
        following = next(delimiters, None)
        # If the last boundary is missing, or the form is truncated, the last part ends with the body.
        end = stop if following is None else following.start
        if opened.end < end:
            left.parts -= 1
            if left.parts < 0:
                raise TooLarge("the form has more parts than the images and options that are allowed")
            yield from _part(view, opened.end, end, left, nested=nested)
        opened = following


@dataclass(slots=True)
class _Left:
    """How many more parts are allowed, and the function to call for memory."""

    parts: int
    hold: Callable[[int], None]


@dataclass(frozen=True, slots=True)
class _Delimiter:
    """The line of a boundary. The data before it ends at ``start``, and the data after it begins at
    ``end``."""

    start: int
    end: int
    last: bool


def _delimiters(body: bytes | bytearray, start: int, stop: int, boundary: bytes) -> Iterator[_Delimiter]:
    """All boundaries. If the first one ends in a bare LF, the form has LF everywhere, otherwise CR LF."""
    dashes, place, line_end, false = b"--" + boundary, start, b"", 0
    while (found := body.find(dashes, place, stop)) >= 0:
        place = found + len(dashes)
        before = _data_end(body, start, found, line_end)
        if before is None and body[found - 1] == 0x0A and _HEAD_FOLLOWS.match(body, place, stop):
            # Accept a boundary after a line end without CR, so that the next part is not lost.
            before = found - 1
        last = body[place : place + 2] == b"--"
        end = _LINE_END.match(body, place + 2 if last else place, stop)
        if before is None or (end is None and place + 2 * last < stop):  # it is data, or a longer boundary
            false += 1
            if false > _MOST_FALSE:
                raise UnreadableRequest("the boundary of the form occurs too often in its data")
            continue
        if not line_end and end is not None:
            line_end = end[1]
        yield _Delimiter(before, stop if end is None else end.end(), last)


def _data_end(body: bytes | bytearray, start: int, found: int, line_end: bytes) -> int | None:
    """Where the data before a boundary ends. None if the boundary does not begin a line."""
    if found == start:
        return found
    if line_end != b"\n" and found - 2 >= start and body[found - 2 : found] == b"\r\n":
        return found - 2
    return found - 1 if line_end != b"\r\n" and body[found - 1] == 0x0A else None


def _part(view: memoryview, start: int, end: int, left: "_Left", *, nested: bool) -> Iterator[Part]:
    head_stop = min(end, start + _LONGEST_HEAD)
    empty = re.compile(rb"\r?\n").match(view, start, end)
    if empty is not None:  # the part has no header lines
        headers, data_start = b"", empty.end()
    else:
        found = _HEAD_END.search(view, start, head_stop)
        if found is None:
            if end - start > _LONGEST_HEAD:
                raise UnreadableRequest(f"a part of the form has more than {_LONGEST_HEAD} bytes of headers")
            headers, data_start = bytes(view[start:end]), end
        else:
            headers, data_start = bytes(view[start : found.start()]), found.end()
    message = _message(headers)
    kind = _kind(message)
    if kind.startswith("multipart/") and not nested:
        inner = _parameter(message, "boundary")
        if not inner:
            raise UnreadableRequest(f"the form cannot be read: a part is {kind} and has no boundary")
        body = view.obj
        assert isinstance(body, bytes | bytearray)
        boundary = inner.rstrip(" ").encode("latin-1", "replace")
        yield from _parts(body, data_start, end, boundary, left, nested=True)
        return
    data = _decoded(view[data_start:end], message, left.hold)
    yield Part(_parameter(message, "name", "content-disposition") or "", _filename(message), kind, data)


def _message(headers: bytes) -> Message:
    try:
        return _HEADERS.parsestr(headers.decode("utf-8", "replace") + "\r\n\r\n")
    except (MessageError, ValueError, LookupError, IndexError) as error:
        raise UnreadableRequest(f"the form cannot be read: the headers of a part: {error}") from error


def _kind(message: Message) -> str:
    return (
        ""
        if "content-type" not in message
        else str(message["content-type"]).partition(";")[0].strip().lower()
    )


def _filename(message: Message) -> str | None:
    name = _parameter(message, "filename", "content-disposition")
    return name if name is not None else _parameter(message, "name", "content-type")


def _parameter(message: Message, name: str, header: str = "content-type") -> str | None:
    """A parameter, also in the form of RFC 8187 (name*=utf-8''...)."""
    try:
        value = message.get_param(name, header=header)
    except (ValueError, LookupError, IndexError, TypeError):
        return None
    if isinstance(value, tuple):
        charset, _, text = value
        try:
            return text.encode("latin-1").decode(charset or "utf-8", "replace")
        except (LookupError, ValueError):
            return text
    return value


def _decoded(
    data: memoryview, message: Message, hold: Callable[[int], None]
) -> memoryview | bytes | bytearray:
    """The data with its Content-Transfer-Encoding removed. Mail has several encodings, and HTTP should have
    none."""
    encoding = str(message.get("content-transfer-encoding", "binary")).strip().lower()
    match encoding:
        case "" | "binary" | "8bit" | "7bit":
            return data
        case "base64":
            hold(len(data) * 3 // 4)
            return from_base64(data, None, "a part of the form") if len(data) else data
        case "quoted-printable":
            if len(data) > _MOST_QUOTED:
                raise TooLarge(f"a part of the form has more than {_MOST_QUOTED} bytes of quoted-printable")
            return quopri.decodestring(data)
        case _:
            raise UnreadableRequest(
                f"a part of the form has the Content-Transfer-Encoding {short.repr(encoding)}; allowed are "
                "binary, base64 and quoted-printable, or none"
            )
