"""BMP: limits run-length encoding, which is decoded byte by byte in Python."""

import struct

from app.errors import TooLarge

SIGNATURE = b"BM"

# Each takes about a microsecond.
MOST_RUN_LENGTH_BYTES = 4 * 2**20
_COMPRESSION = struct.Struct("<I")
_COMPRESSION_AT, _RUN_LENGTH = 30, (1, 2)


def check_run_lengths(data: bytes) -> None:
    """Raises TooLarge if there is more run-length encoding than can be decoded in a few seconds."""
    if len(data) <= MOST_RUN_LENGTH_BYTES:
        return
    (compression,) = _COMPRESSION.unpack_from(data, _COMPRESSION_AT)
    if compression in _RUN_LENGTH:
        raise TooLarge(
            f"the BMP has {len(data)} bytes of run-length encoding; at most {MOST_RUN_LENGTH_BYTES} are "
            "allowed: save it uncompressed or as PNG"
        )
