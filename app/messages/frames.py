"""Messages on a stream: each is preceded by its length. Pure: no sockets."""

import struct
from collections.abc import Iterator

_LENGTH = struct.Struct("<I")
# The largest message is a batch's results with logits: 40 MB for 10,000 images of 1,000 classes.
LONGEST = 2**30


class NoFrame(ValueError):
    """The data is not a sequence of frames, so the stream cannot be read any further."""


def framed(message: bytes) -> bytes:
    """The message with its length before it."""
    return _LENGTH.pack(len(message)) + message


class FrameReader:
    """Assembles the messages of one stream, however it was split."""

    def __init__(self) -> None:
        self._rest = bytearray()  # received bytes of an incomplete message

    def feed(self, data: bytes | memoryview) -> Iterator[bytes | memoryview]:
        """The messages that are complete now. Each must be read before the next one, because the data is not
        copied. Raises NoFrame for an invalid length."""
        received = memoryview(data)
        if self._rest:
            self._rest += data
            if _end(self._rest, 0) is None:
                return
            received, self._rest = memoryview(self._rest), bytearray()
        place = 0
        while (end := _end(received, place)) is not None:
            yield received[place + _LENGTH.size : end]
            place = end
        self._rest += received[place:]


def _end(received: bytearray | memoryview, place: int) -> int | None:
    """Where the message that begins there ends. None if it is not complete. Raises NoFrame."""
    if len(received) - place < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(received, place)
    if length > LONGEST:
        raise NoFrame(f"a message of {length} bytes")
    end: int = place + _LENGTH.size + length
    return end if end <= len(received) else None
