"""Messages on a stream: each is preceded by its length. Pure: no sockets."""

import struct
from collections.abc import Iterator

_LENGTH = struct.Struct("<I")
# The largest is a batch's answers with logits: 10,000 images of 1,000 classes are 40 MB.
LONGEST = 2**30


class NoFrame(ValueError):
    """What came is no sequence of frames: the stream cannot be read any further."""


def framed(message: bytes) -> bytes:
    """The message with its length before it."""
    return _LENGTH.pack(len(message)) + message


class FrameReader:
    """Puts together the messages of one stream, however it was cut into pieces."""

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are complete now. Raises NoFrame for a length that no message has."""
        self._received += data
        place = 0
        while len(self._received) - place >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received, place)
            if length > LONGEST:
                raise NoFrame(f"a message of {length} bytes")
            end = place + _LENGTH.size + length
            if len(self._received) < end:
                break
            yield bytes(memoryview(self._received)[place + _LENGTH.size : end])
            place = end
        del self._received[:place]
