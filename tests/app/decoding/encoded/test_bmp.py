"""BMPs in run lengths."""

import struct

import pytest

from app.decoding.encoded.bmp import MOST_RUN_LENGTH_BYTES
from app.errors import TooLarge
from tests.app.decoding.encoded.files import LIMITS, encoded, noisy, seen


def in_run_lengths(width: int, height: int, runs: bytes) -> bytes:
    head = struct.pack("<IHHI", 54 + 1024 + len(runs), 0, 0, 54 + 1024)
    head += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 256)
    palette = b"".join(bytes([grey, grey, grey, 0]) for grey in range(256))
    return b"BM" + head + palette + runs


def test_run_lengths_are_decoded() -> None:
    """Eight pixels of one grey a row, four rows."""
    assert (seen(in_run_lengths(8, 4, b"\x08\x4d\0\0" * 4 + b"\0\1")).pixels == 0x4D).all()


def test_megabytes_of_run_lengths_are_refused_unread() -> None:
    """They take a microsecond for each byte; plain pixels do not."""
    with pytest.raises(TooLarge, match="run-length encoding"):
        seen(in_run_lengths(500, 500, b"\1\1" * MOST_RUN_LENGTH_BYTES))
    assert LIMITS.pixels * 3 < MOST_RUN_LENGTH_BYTES
    assert seen(encoded(noisy(), "BMP") + bytes(MOST_RUN_LENGTH_BYTES)).pixels.any()
