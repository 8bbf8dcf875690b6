"""Corrects or rejects images that Pillow would silently misread, before they are loaded. No torch."""

import struct
from typing import IO

from PIL import Image, ImageFile, ImagePalette, TiffImagePlugin

from models.samples import UnclearPixels

# Pillow scales grey PNG samples of 2 and 4 bits to 8, but not the transparent value (PNG, 11.3.2.1).
_SPREAD = {"L;2": (3, 85), "L;4": (15, 17)}
_WHITE = (255, 255, 255)
_WIDE_RGB = "RGB;16B"

# BMP header: its offset, the minimum length of headers with an alpha mask, and the offset of the masks in it.
_HEADER_AT, _WITH_ALPHA, _MASKS_AT = 14, 56, 40
# Pillow's raw mode without alpha -> the masks of red, green, blue and alpha, and the raw mode with alpha.
_ALPHA = {
    "BGRX": ((0xFF0000, 0xFF00, 0xFF, 0xFF000000), "BGRA"),
    "BGR;15": ((0x7C00, 0x3E0, 0x1F, 0x8000), "BGRA;15"),
}
_COVERED = "covered"  # key in Image.info: the box that a GIF's first frame covers

# TIFF 6.0: Compression, PhotometricInterpretation, SamplesPerPixel, PlanarConfiguration, YCbCrSubSampling.
_COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _SUBSAMPLING = 259, 262, 277, 284, 530
_PALETTE, _MOST_OF_8_BITS = 320, 255
_NOT_COMPRESSED, _YCBCR, _IN_PLANES, _INTERLEAVED = 1, 6, 2, 1
# libtiff returns samples in the machine's byte order; for these modes, Pillow expects the file's.
_NATIVE = {
    "F;32F": "F;32NF",
    "F;32BF": "F;32NF",
    "I;16S": "I;16NS",
    "I;16BS": "I;16NS",
    "I;32S": "I;32NS",
    "I;32BS": "I;32NS",
    "I;32": "I;32N",
    "I;32B": "I;32N",
    "F;64F": "F;64NF",
    "F;64BF": "F;64NF",
}
_ORDERS = ((b"II", ""), (b"MM", "B"))
_UNSIGNED, _FLOAT = (1,), (3,)
# Single-channel TIFFs that Pillow can decode but does not register, with 0 as white or as black.
for _order, _mark in _ORDERS:
    for _zero in (0, 1):
        for _format, _bits, _mode, _raw in (
            (_UNSIGNED, 16, f"I;16{_mark}", f"I;16{_mark}"),
            (_UNSIGNED, 32, "I", f"I;32{_mark}"),
            (_FLOAT, 64, "F", f"F;64{_mark}F"),
        ):
            TiffImagePlugin.OPEN_INFO.setdefault((_order, _zero, _format, 1, (_bits,), ()), (_mode, _raw))


def put_right(image: Image.Image) -> None:
    """Correct the image before it is loaded. Raises UnclearPixels if it cannot be corrected."""
    if image.format == "PNG":
        _compare_as_stored(image)
    elif image.format == "BMP" and isinstance(image, ImageFile.ImageFile):
        _read_alpha(image)
    elif image.format == "GIF" and isinstance(image, ImageFile.ImageFile) and image.tile:
        image.info[_COVERED] = image.tile[0].extents
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        _read_planes(image)
        _read_narrow_palette(image)
        _expect_native_order(image)


def is_opaque_bitmap(image: Image.Image) -> bool:
    """Whether a loaded image is a BMP whose alpha channel is 0 everywhere. Its writer did not use the
    channel, and browsers show such an image as opaque."""
    return image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)


def whiten_uncovered(rgb: Image.Image, image: Image.Image) -> None:
    """Paint the area of ``rgb`` white that the first frame of the GIF ``image`` does not cover. It is
    transparent in browsers, but Pillow fills it with the first color of the palette."""
    left, top, right, bottom = image.info.get(_COVERED, (0, 0, *image.size))
    for box in (
        (0, 0, image.width, top),
        (0, bottom, image.width, image.height),
        (0, top, left, bottom),
        (right, top, image.width, bottom),
    ):
        if box[0] < box[2] and box[1] < box[3]:
            rgb.paste(_WHITE, box)


def _read_alpha(image: ImageFile.ImageFile) -> None:
    """Read a BMP's alpha channel if its header has an alpha mask, which Pillow ignores."""
    masks, with_alpha = _ALPHA.get(_raw_mode(image), ((), ""))
    file: IO[bytes] | None = image.fp
    if not masks or file is None:
        return
    file.seek(_HEADER_AT)
    header = file.read(_WITH_ALPHA)
    has_masks = len(header) == _WITH_ALPHA <= struct.unpack_from("<I", header)[0]
    if has_masks and struct.unpack_from("<4I", header, _MASKS_AT) == masks:
        image._mode = "RGBA"
        (tile,) = image.tile
        assert isinstance(tile.args, tuple)
        image.tile = [tile._replace(args=(with_alpha, *tile.args[1:]))]


def _compare_as_stored(image: Image.Image) -> None:
    """Scale a PNG's transparent value to 8 bits like its samples. Of 16-bit samples, Pillow keeps the upper 8
    bits, so colors that only differ in the lower ones become transparent too."""
    transparent = image.info.get("transparency")
    raw_mode = _raw_mode(image)
    if isinstance(transparent, int) and raw_mode in _SPREAD:
        mask, step = _SPREAD[raw_mode]
        image.info["transparency"] = (transparent & mask) * step
    elif isinstance(transparent, tuple) and raw_mode == _WIDE_RGB:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)


def _read_narrow_palette(image: TiffImagePlugin.TiffImageFile) -> None:
    """Read a TIFF palette with 8-bit values. Palettes should have 16-bit values, but some writers use 8 bits,
    which libtiff detects. Pillow would take the upper 8 bits and show black."""
    values = image.tag_v2.get(_PALETTE, ())
    if image.mode in ("P", "PA") and values and max(values) <= _MOST_OF_8_BITS:
        image.palette = ImagePalette.raw("RGB;L", bytes(values))


def _read_planes(image: TiffImagePlugin.TiffImageFile) -> None:
    """Read uncompressed channels that are planar or subsampled with libtiff: Pillow's own reader would take
    every byte of a plane for a sample. Raises UnclearPixels for planar LAB or two-channel images."""
    tags = image.tag_v2
    in_planes = tags.get(_PLANAR) == _IN_PLANES
    if in_planes and tags.get(_SAMPLES, 1) == 1:  # planar and interleaved are the same
        tags[_PLANAR] = _INTERLEAVED
        image._setup()
        return
    if in_planes and (image.mode == "LAB" or len(image.getbands()) == 2):
        raise UnclearPixels(
            f"the TIFF stores its {'+'.join(image.getbands())} channels in planes, which is not supported; "
            "save it with interleaved channels (planar configuration 1), or as PNG"
        )
    subsampled = tags.get(_PHOTOMETRIC) == _YCBCR and tags.get(_SUBSAMPLING, (1, 1)) != (1, 1)
    if (in_planes or subsampled) and tags.get(_COMPRESSION, _NOT_COMPRESSED) == _NOT_COMPRESSED:
        TiffImagePlugin.READ_LIBTIFF = True
        try:
            image._setup()
        finally:
            TiffImagePlugin.READ_LIBTIFF = False


def _expect_native_order(image: TiffImagePlugin.TiffImageFile) -> None:
    if image.use_load_libtiff and (raw_mode := _raw_mode(image)) in _NATIVE:
        (tile,) = image.tile
        assert isinstance(tile.args, tuple)
        image.tile = [tile._replace(args=(_NATIVE[raw_mode], *tile.args[1:]))]


def _raw_mode(image: Image.Image) -> str:
    """Pillow's raw mode of the file's samples; empty once the image is loaded."""
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return ""
    args = image.tile[0].args
    found = args[0] if isinstance(args, tuple) else args
    return found if isinstance(found, str) else ""
