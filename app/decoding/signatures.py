"""The first bytes of encoded images, which tell an image from text regardless of its Content-Type."""

import re

_IMAGE = re.compile(
    rb"\xff\xd8\xff"  # JPEG
    rb"|\x89PNG"
    rb"|GIF8"
    rb"|RIFF....WEBP"
    rb"|BM.{4}\0\0\0\0"
    rb"|II\*\0|MM\0\*|II\+\0|MM\0\+"  # TIFF, BigTIFF
    rb"|....ftyp(?:avi|hei|hev|mif|msf)"  # AVIF, HEIC
    rb"|\0\0\0\x0c(?:jP  |JXL )|\xff\x4f\xff\x51|\xff\x0a",  # JPEG 2000, JPEG XL
    re.DOTALL,
)


def begins_as_image(data: bytes | bytearray | memoryview) -> bool:
    """Whether these bytes begin like an image, in a supported format or another one."""
    return _IMAGE.match(data[:32]) is not None
