"""Kept patches as pictures. Free of torch: the front end draws masks with it."""

import struct
import zlib

import numpy as np
from jaxtyping import Int, Integer, UInt8

_DIMMED = 0.25  # brightness of a pruned patch


def cells_of(kept: Integer[np.ndarray, " kept"], grid: tuple[int, int]) -> UInt8[np.ndarray, "rows columns"]:
    """The patch grid with 1 for every kept patch, by its index row by row, and 0 for the others."""
    cells = np.zeros(grid, np.uint8)
    cells.flat[kept] = 1
    return cells


def dimmed(
    cells: UInt8[np.ndarray, "rows columns"],
    pixels: UInt8[np.ndarray, "height width 3"],
    patch_size: tuple[int, int],
    patch_stride: tuple[int, int],
) -> UInt8[np.ndarray, "height width 3"]:
    """What the model saw, with every patch whose cell is 0 dimmed.

    A pixel goes with the patch whose centre is nearest to it: where patches overlap, each shows as one
    stride, and what no patch covers at the right and at the bottom goes with the last ones.
    """
    rows, columns = map(_nearest_patches, pixels.shape[:2], cells.shape, patch_size, patch_stride)
    brightness = np.where(cells[np.ix_(rows, columns)] == 1, 1.0, _DIMMED)[..., np.newaxis]
    return (pixels * brightness).astype(np.uint8)


def _nearest_patches(side: int, patches: int, size: int, stride: int) -> Int[np.ndarray, " side"]:
    """Along one side, the number of the patch whose centre is nearest to each pixel's; of two, the later."""
    # Patch p has its centre at p * stride + size / 2, pixel x at x + 1 / 2; twice that is whole.
    return np.clip((2 * np.arange(side) + 1 - size + stride) // (2 * stride), 0, patches - 1)


def png_of(pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """The pixels as a PNG (RFC 2083), each sample less its neighbour's to the left (filter 1).

    Pillow keeps the interpreter's lock while it compresses, 20 ms for 224 x 224 pixels, and the front end's
    event loop waits. zlib does not.
    """
    height, width = pixels.shape[:2]
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = 1
    rows[:, 1:4] = pixels[:, 0]
    rows[:, 4:] = (pixels[:, 1:] - pixels[:, :-1]).reshape(height, -1)  # modulo 256
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
