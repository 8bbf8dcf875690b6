"""Encoded images put together by hand."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from app.decoding.images import ImageLimits, ModelInput, decode
from models.transforms import InputSpec

SPEC = InputSpec((24, 32), (0.5,) * 3, (0.5,) * 3)
LIMITS = ImageLimits(1_000_000)


def noisy(width: int = 320, height: int = 240) -> Image.Image:
    small = np.random.default_rng(7).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(small.repeat(8, axis=0).repeat(8, axis=1))


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def seen(data: bytes, limits: ImageLimits = LIMITS) -> ModelInput:
    return decode(data, SPEC, limits)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def jpeg_segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
