"""Images whose samples Pillow misreads without an error, against what their formats say."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from jaxtyping import UInt8
from PIL import Image

from models.samples import UnclearPixels
from models.transforms import InputSpec, photograph, to_pixels
from tests.app.decoding.encoded.files import encoded, png_chunk

ROWS, COLUMNS = 3, 5
SPEC = InputSpec((ROWS, COLUMNS), (0.5,) * 3, (0.5,) * 3)
COLOURS = np.random.default_rng(11).integers(0, 256, (ROWS, COLUMNS, 3), np.uint8)
ORDERS = ("<", ">")


def pixels(data: bytes) -> UInt8[np.ndarray, "rows columns 3"]:
    """As a model sees them, and as augmentation does, which must be the same."""
    seen = to_pixels(Image.open(io.BytesIO(data)), SPEC)
    assert np.array_equal(np.asarray(photograph(Image.open(io.BytesIO(data)))), seen)
    return seen


# --- PNG ---------------------------------------------------------------------------------------------


def png(bits: int, colour_type: int, rows: Sequence[bytes], transparent: bytes) -> bytes:
    header = struct.pack(">2I5B", COLUMNS, ROWS, bits, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = ((b"IHDR", header), (b"tRNS", transparent), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_transparent_grey_of_a_png_is_white_at_every_depth(bits: int) -> None:
    """tRNS names a stored sample, from 0 to 2**bits - 1, and only that one lies on white."""
    most = 2**bits - 1
    stored = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) % (most + 1)
    rows = [np.packbits(((row[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8)) for row in stored]
    for transparent in {0, 1, most // 2, most}:
        seen = pixels(png(bits, 0, [row.tobytes() for row in rows], struct.pack(">H", transparent)))
        wanted = [[255 if value == transparent else value * 255 // most for value in row] for row in stored]
        assert seen[..., 0].tolist() == wanted


def test_the_transparent_colour_of_a_png_of_16_bits_is_white() -> None:
    """It is compared in the bits that are kept of each sample."""
    colours = COLOURS.copy()
    colours[1, 2] = (37, 1, 254)
    colours[2, 3] = (1, 244, 255)  # the lower bytes of the transparent colour, which are no colour
    samples = colours.astype(np.uint16) * 256
    samples[1, 2] += np.array([1, 244, 255], np.uint16)
    rows = [row.astype(">u2").tobytes() for row in samples]
    seen = pixels(png(16, 2, rows, struct.pack(">3H", *samples[1, 2].tolist())))
    colours[1, 2] = 255
    assert np.array_equal(seen, colours)


# --- BMP ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "opaque"), [((0, 0), True), ((0, 255), False)])
def test_a_bmp_without_any_opaque_pixel_is_opaque(alpha: tuple[int, int], opaque: bool) -> None:
    """As browsers show it: its writer left the fourth channel out. One that has any is transparent."""
    fourth = np.full((ROWS, COLUMNS, 1), alpha[0], np.uint8)
    fourth[1, 2] = alpha[1]
    data = np.concatenate([COLOURS[::-1, :, ::-1], fourth[::-1]], axis=2).tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, COLUMNS, ROWS, 1, 32, 3, len(data), 0, 0, 0, 0) + masks
    header += b"BGRs" + bytes(48)
    file = b"BM" + struct.pack("<IHHI", 14 + len(header) + len(data), 0, 0, 14 + len(header)) + header + data
    wanted = COLOURS if opaque else np.where(fourth == 255, COLOURS, 255)
    assert np.array_equal(pixels(file), wanted)


MASKS = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


def bitmap(bits: int, rows: Sequence[bytes], header_bytes: int, masks: tuple[int, ...]) -> bytes:
    data = b"".join(row + bytes(-len(row) % 4) for row in reversed(rows))
    fields = struct.pack("<IiiHHIIiiII", header_bytes, COLUMNS, ROWS, 1, bits, 3, len(data), 0, 0, 0, 0)
    header = (fields + struct.pack("<4I", *masks)).ljust(header_bytes, b"\0")
    start = 14 + len(header)
    return struct.pack("<2sIII", b"BM", start + len(data), 0, start) + header + data


@pytest.mark.parametrize("masks", [MASKS, (*MASKS[:3], 0)], ids=["alpha", "no alpha"])
@pytest.mark.parametrize("compression", [0, 3])
def test_a_bmp_is_transparent_if_its_header_says_so(masks: tuple[int, ...], compression: int) -> None:
    """Headers of version 4 and 5 name the bits of alpha, whether the colors are a bit field or not."""
    alpha = np.full((ROWS, COLUMNS, 1), 255, np.uint8)
    alpha[1, 2] = 0
    rows = [row.tobytes() for row in np.concatenate([COLOURS[..., ::-1], alpha], axis=2)]
    wanted = COLOURS.copy()
    if masks == MASKS:
        wanted[1, 2] = 255
    for header_bytes in (56, 108, 124):
        data = bytearray(bitmap(32, rows, header_bytes, masks))
        data[30] = compression
        assert np.array_equal(pixels(bytes(data)), wanted)


def test_a_bmp_of_16_bits_may_have_a_bit_of_alpha() -> None:
    """Five bits of each color, and the uppermost for alpha."""
    five = COLOURS.astype(np.uint16) >> 3
    samples = five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2] | 0x8000
    samples[1, 2] &= 0x7FFF
    rows = [row.astype("<u2").tobytes() for row in samples]
    wanted = five * 255 // 31
    wanted[1, 2] = 255
    seen = pixels(bitmap(16, rows, 108, (0x7C00, 0x3E0, 0x1F, 0x8000)))
    assert np.array_equal(seen, wanted)


# --- TIFF --------------------------------------------------------------------------------------------

SHORT, LONG = 3, 4


def tiff(tags: dict[int, list[int]], strips: Sequence[bytes], order: str = "<") -> bytes:
    """Of the one size, with these tags; all strips have all rows."""
    entries = {256: [COLUMNS], 257: [ROWS], 259: [1], 278: [ROWS], **tags}
    starts = [8 + sum(map(len, strips[:number])) for number in range(len(strips))]
    entries |= {273: starts, 279: [len(strip) for strip in strips]}
    data = b"".join(strips)
    directory = 8 + len(data)
    behind = directory + 2 + 12 * len(entries) + 4
    written, values_behind = b"", b""
    for tag, values in sorted(entries.items()):
        kind = LONG if tag in (273, 279) else SHORT
        value = struct.pack(f"{order}{len(values)}{'I' if kind == LONG else 'H'}", *values)
        if len(value) > 4:
            place = struct.pack(f"{order}I", behind + len(values_behind))
            values_behind, value = values_behind + value, place
        written += struct.pack(f"{order}HHI", tag, kind, len(values)) + value.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}I", directory) + data + struct.pack(f"{order}H", len(entries))
    return head + written + bytes(4) + values_behind


def packed(data: bytes, compression: int) -> bytes:
    return zlib.compress(data) if compression == 8 else data


def in_planes(
    samples: np.ndarray, photometric: int, compression: int, order: str, extra: int | None = None
) -> bytes:
    count = samples.shape[2]
    strips = [
        packed(samples[..., plane].astype(samples.dtype.newbyteorder(order)).tobytes(), compression)
        for plane in range(count)
    ]
    tags = {
        258: [samples.dtype.itemsize * 8] * count,
        259: [compression],
        262: [photometric],
        277: [count],
        284: [2],
    }
    return tiff(tags | ({} if extra is None else {338: [extra]}), strips, order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("bits", [8, 16])
def test_channels_in_planes_are_the_same_picture(bits: int, compression: int, order: str) -> None:
    """TIFF's planar configuration 2, of RGB, CMYK, and RGB with transparency of either kind."""
    wide = np.uint16(257) if bits == 16 else np.uint8(1)
    assert np.array_equal(pixels(in_planes(COLOURS * wide, 2, compression, order)), COLOURS)
    cmyk = np.concatenate([255 - COLOURS, np.zeros((ROWS, COLUMNS, 1), np.uint8)], axis=2)
    assert np.array_equal(pixels(in_planes(cmyk * wide, 5, compression, order)), COLOURS)
    opaque = np.concatenate([COLOURS, np.full((ROWS, COLUMNS, 1), 255, np.uint8)], axis=2)
    for extra in (1, 2):
        assert np.array_equal(pixels(in_planes(opaque * wide, 2, compression, order, extra)), COLOURS)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("compression", [1, 8])
def test_one_channel_in_planes_is_a_channel(compression: int, order: str) -> None:
    """The planar configuration says nothing there, also where white is zero."""
    grey = COLOURS[..., :1]
    as_grey = np.repeat(grey, 3, axis=2)
    assert np.array_equal(pixels(in_planes(grey, 1, compression, order)), as_grey)
    assert np.array_equal(pixels(in_planes(255 - grey, 0, compression, order)), as_grey)
    assert np.array_equal(pixels(in_planes(grey * np.uint16(257), 1, compression, order)), as_grey)


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize(("photometric", "channels"), [(8, 3), (1, 2)], ids=["LAB", "LA"])
def test_planes_that_nothing_reads_right_are_refused(
    photometric: int, channels: int, compression: int
) -> None:
    """In words, where Pillow gives other colours without a word."""
    samples = np.full((ROWS, COLUMNS, channels), 100, np.uint8)
    with pytest.raises(UnclearPixels, match="in planes, which is not supported"):
        pixels(in_planes(samples, photometric, compression, "<", 2 if channels == 2 else None))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_palette_may_have_8_bits_where_it_has_room_for_16(bits: int, order: str) -> None:
    """No value of it is above 255 then, and all colors would be black."""
    most = 2**bits
    colours = np.random.default_rng(3).integers(1, 256, (most, 3))
    stored = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) % most
    rows = [np.packbits(((row[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8)) for row in stored]
    for scale in (1, 257):
        tags = {258: [bits], 259: [1], 262: [3], 277: [1], 320: (colours.T * scale).ravel().tolist()}
        data = b"".join(row.tobytes() for row in rows)
        assert np.array_equal(pixels(tiff(tags, [data], order)), colours[stored])


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("order", ORDERS)
def test_numbers_have_the_order_of_their_file(order: str, compression: int) -> None:
    """Floats, signed and unsigned integers, also where white is 0."""
    grey = COLOURS[..., 0]
    for values, format_of_samples, black in (
        ((grey / 255).astype(np.float32), 3, 1),
        (grey / 255, 3, 1),
        (1 - grey / 255, 3, 0),
        (grey.astype(np.int16) * 128, 2, 1),
        (grey * np.uint16(257), 1, 1),
        ((255 - grey) * np.uint16(257), 1, 0),
        (grey * np.uint32(0x1010101), 1, 1),
        ((255 - grey) * np.uint32(0x1010101), 1, 0),
    ):
        data = packed(values.astype(values.dtype.newbyteorder(order)).tobytes(), compression)
        bits = values.dtype.itemsize * 8
        tags = {258: [bits], 259: [compression], 262: [black], 277: [1], 339: [format_of_samples]}
        seen = pixels(tiff(tags, [data], order))
        assert np.abs(seen[..., 0].astype(int) - grey).max() <= 1


def test_uncompressed_subsampled_colours_are_read() -> None:
    """YCbCr with one pair of colours for two pixels (TIFF 6.0, section 21)."""
    luma = np.random.default_rng(5).integers(0, 256, (ROWS, 6), np.uint8)
    units = np.full((ROWS, 3, 4), 128, np.uint8)
    units[..., 0], units[..., 1] = luma[:, ::2], luma[:, 1::2]
    tags = {256: [6], 258: [8] * 3, 262: [6], 277: [3], 530: [2, 1]}
    image = photograph(Image.open(io.BytesIO(tiff(tags, [units.tobytes()]))))
    assert np.abs(np.asarray(image).astype(int) - luma[..., None]).max() <= 1


def test_pillows_own_files_are_read_as_before() -> None:
    """A YCbCr TIFF that is not subsampled."""
    image = Image.fromarray(COLOURS)
    wanted = np.asarray(image.convert("YCbCr").convert("RGB")).astype(int)
    assert np.abs(pixels(encoded(image.convert("YCbCr"), "TIFF")).astype(int) - wanted).max() <= 2
