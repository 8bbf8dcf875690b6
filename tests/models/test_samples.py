"""Samples of more than 8 bits become 8 bits."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.samples import UnclearPixels
from models.transforms import as_rgb


def tiff(values: np.ndarray, *, photometric: int = 1, bits: int | None = None, order: str = "<") -> bytes:
    """A TIFF of one row of grey samples, of the array's type or packed already to so many ``bits``."""
    kinds = {"u": 1, "i": 2, "f": 3}
    width = len(values) if bits is None else len(values) * 8 // bits
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = {
        256: width,
        257: 1,
        258: bits or values.dtype.itemsize * 8,
        259: 1,
        262: photometric,
        273: 8 + 2 + 12 * 11 + 4,
        277: 1,
        278: 1,
        279: len(data),
        284: 1,
        339: kinds[values.dtype.kind],
    }
    entries = b"".join(struct.pack(f"{order}HHII", number, 4, 1, value) for number, value in tags.items())
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    return head + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + data


def seen(file: bytes, said: list[str] | None = None) -> list[int]:
    image = as_rgb(Image.open(io.BytesIO(file)), (said if said is not None else []).append)
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return [int(value) for value in pixels[0, :, 0]]


SIXTEEN = np.array([0, 257, 32896, 65535], np.uint16)
EIGHT = [0, 1, 128, 255]
TWELVE = np.array([0xFF, 0xF0, 0x00, 0x80, 0x01, 0x23], np.uint8)  # 4095, 0, 2048, 291

CLEAR = {
    "16 bits": (tiff(SIXTEEN), EIGHT),
    "16 bits, big-endian": (tiff(SIXTEEN, order=">"), EIGHT),
    "16 bits, white is zero": (tiff(SIXTEEN, photometric=0), [255, 254, 127, 0]),
    "12 bits": (tiff(TWELVE, bits=12), [255, 0, 128, 18]),
    "8 bits, white is zero": (tiff(np.array([0, 55, 255], np.uint8), photometric=0), [255, 200, 0]),
    "signed 16 bits without a sign": (tiff(np.array([0, 16384, 32767], np.int16)), [0, 128, 255]),
    "32-bit integers of 8-bit values": (tiff(np.array([0, 7, 255], np.uint32)), [0, 7, 255]),
    "32-bit integers of 16-bit values": (tiff(SIXTEEN.astype(np.uint32)), EIGHT),
    "floats to 1": (tiff(np.array([0, 0.6, 1], np.float32)), [0, 153, 255]),
    "floats a little beyond 0 and 1": (tiff(np.array([-0.02, 0.6, 1.1], np.float32)), [0, 153, 255]),
    "floats to 255": (tiff(np.array([0, 153, 255], np.float32)), [0, 153, 255]),
    "floats a little beyond 255": (tiff(np.array([-3, 153, 261], np.float32)), [0, 153, 255]),
    "floats that are no numbers": (
        tiff(np.array([np.nan, np.inf, -np.inf, 0.6], np.float32)),
        [0, 255, 0, 153],
    ),
    "no numbers at all": (tiff(np.array([np.nan, np.nan], np.float32)), [0, 0]),
    "dark floats": (tiff(np.array([0, 0.004, 0.002], np.float32)), [0, 1, 1]),
}


@pytest.mark.parametrize("name", CLEAR)
def test_what_is_clear_is_scaled_without_a_word(name: str) -> None:
    """By the format's own range, or that of the values."""
    file, expected = CLEAR[name]
    said: list[str] = []
    assert seen(file, said) == expected
    assert said == []


TOLD = {
    "floats to 65535": (tiff(np.array([0, 32896, 65535], np.float32)), [0, 128, 255], "up to 65535"),
    "32-bit integers": (tiff(np.array([0, 2**31, 2**32 - 1], np.uint32)), [0, 128, 255], "up to 4294967295"),
    "signed 32-bit integers": (tiff(np.array([0, 2**31 - 1], np.int32)), [0, 255], "up to 2147483647"),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_is_uncertain_is_scaled_and_told(name: str) -> None:
    """The answer says what white was taken to be."""
    file, expected, words = TOLD[name]
    said: list[str] = []
    assert seen(file, said) == expected
    assert words in said[0]


REFUSED = {
    "floats to a million": (tiff(np.array([0, 1e6], np.float32)), "from 0 to 1e+06"),
    "floats around 0": (tiff(np.array([-1, 1], np.float32)), "from -1 to 1"),
    "signed 16 bits": (tiff(np.array([-5, 300], np.int16)), "signed integers, from -5 to 300"),
    "signed 32 bits": (tiff(np.array([-5, 300], np.int32)), "signed integers, from -5 to 300"),
    "signed 8 bits": (tiff(np.array([-5, 100], np.int8)), "signed 8-bit samples"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_nobody_can_know_is_refused(name: str) -> None:
    """The words name the values found, and what to save instead."""
    file, words = REFUSED[name]
    with pytest.raises(UnclearPixels, match="save it with") as refusal:
        seen(file)
    assert words in str(refusal.value)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=300))
def test_floats_from_0_to_1_keep_their_brightness(values: list[float]) -> None:
    """Each is its share of 255, rounded."""
    shown = seen(tiff(np.array(values, np.float32)))
    assert np.abs(np.array(shown) - np.array(values) * 255).max() <= 0.501


def test_a_transparent_16_bit_grey_lies_on_white() -> None:
    """The value that a PNG names as transparent is white, the others stay."""
    file = io.BytesIO()
    Image.fromarray(np.array([[257, 65535, 257 * 9]], np.uint16)).save(file, "PNG", transparency=257)
    assert seen(file.getvalue()) == [255, 255, 9]
