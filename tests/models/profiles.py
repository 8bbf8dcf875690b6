"""ICC profiles for tests, made by hand: matrix and gamma (ICC.1:2001-04, section 6.3.1)."""

import struct

import numpy as np

Chromaticities = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]

_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D65_XY, _D50_XY = (0.3127, 0.3290), (0.3457, 0.3585)

DISPLAY_P3: Chromaticities = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE_RGB: Chromaticities = ((0.6400, 0.3300), (0.2100, 0.7100), (0.1500, 0.0600))
PROPHOTO: Chromaticities = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001))
SRGB: Chromaticities = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))


def rgb_profile(primaries: Chromaticities, gamma: float, *, white: tuple[float, float] = _D65_XY) -> bytes:
    """A display profile of these primaries."""
    xyz = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    target = np.array([white[0] / white[1], 1.0, (1 - white[0] - white[1]) / white[1]])
    columns = xyz * np.linalg.solve(xyz, target)
    scale = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ target))
    columns = np.linalg.inv(_BRADFORD) @ scale @ _BRADFORD @ columns
    tags = {name: _xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns.T, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma))
    return _profile(b"RGB ", tags)


def grey_profile(gamma: float) -> bytes:
    """A display profile for greys."""
    return _profile(b"GRAY", {b"kTRC": _curve(gamma)})


def cmyk_profile() -> bytes:
    """A printer's profile: a table of 2 x 2 x 2 x 2 inks in Lab (ICC.1:2001-04, section 6.5.10)."""
    ramp = bytes(range(256))
    inks = np.indices((2, 2, 2, 2)).reshape(4, -1).T
    lightness = 255 * (1 - inks[:, 3]) * (1 - 0.25 * inks[:, :3].sum(axis=1))
    colour = np.stack([lightness, 128 + 40 * (inks[:, 1] - inks[:, 0]), 128 + 50 * inks[:, 2]], axis=1)
    identity = b"".join(_fixed(value) for value in np.eye(3).ravel())
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity
    table += ramp * 4 + colour.astype(np.uint8).tobytes() + ramp * 3
    return _profile(b"CMYK", {b"A2B0": table}, kind=b"prtr", between=b"Lab ")


def _profile(
    space: bytes, tags: dict[bytes, bytes], *, kind: bytes = b"mntr", between: bytes = b"XYZ "
) -> bytes:
    tags = {b"desc": _description(b"test"), b"cprt": b"text\0\0\0\0none\0", b"wtpt": _xyz(_D50), **tags}
    table, data = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack(">4sII", name, start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    size = start + len(data)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, kind, space, between)
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    head += b"".join(_fixed(value) for value in _D50)
    return head.ljust(128, b"\0") + table + data


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, values))


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def _description(text: bytes) -> bytes:
    text += b"\0"
    return b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(4 + 4 + 2 + 1 + 67)


DISPLAY_P3_PROFILE = rgb_profile(DISPLAY_P3, 2.2)
ADOBE_RGB_PROFILE = rgb_profile(ADOBE_RGB, 2.19921875)
PROPHOTO_PROFILE = rgb_profile(PROPHOTO, 1.8, white=_D50_XY)
