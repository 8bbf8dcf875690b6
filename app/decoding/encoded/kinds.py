"""Recognizes bytes in an unknown format by their first bytes, for the error message."""

import base64
import binascii
import re

from app.errors import Problem, UndecodableImage, UnsupportedMediaType

_ADVICE = "convert it to JPEG or PNG"

# Image formats that are detected by their first bytes. Most are not supported, and their decoders are never
# called.
_IMAGES = [
    (name, re.compile(signature, re.DOTALL))
    for name, signature in {
        "HEIC": rb"....ftyp(heic|heix|heim|heis|hevc|hevx|hevm|hevs|mif1|mif2|msf1|miaf)",
        "AVIF": rb"....ftypavi[fso]",
        "a camera raw file (CR3)": rb"....ftypcrx ",
        "a camera raw file (CR2)": rb"II\*\0....CR\x02|MM\0\*....CR\x02",
        "a camera raw file (ORF)": rb"II(RO|RS)|MMOR",
        "a camera raw file (RW2)": rb"IIU\0",
        "a camera raw file (RAF)": rb"FUJIFILMCCD-RAW",
        "a camera raw file (X3F)": rb"FOVb",
        "a camera raw file (MRW)": rb"\0MRM",
        "JPEG2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
        "JPEG XL": rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a",
        "JPEG XR": rb"II\xbc",
        "PPM": rb"P[1-7fF]\s",
        "ICO": rb"\0\0\x01\0",
        "ICNS": rb"icns",
        "DDS": rb"DDS ",
        "KTX": rb"\xabKTX",
        "PSD": rb"8BPS",
        "GIMP's XCF": rb"gimp xcf",
        "SGI": rb"\x01\xda[\0\x01][\x01\x02]",
        "PCX": rb"\x0a[\0-\x05]\x01[\x01\x02\x04\x08]",
        "EPS": rb"%!PS|\xc5\xd0\xd3\xc6",
        "QOI": rb"qoif",
        "FLIF": rb"FLIF",
        "BPG": rb"BPG\xfb",
        "OpenEXR": rb"\x76\x2f\x31\x01",
        "Radiance HDR": rb"#\?(RADIANCE|RGBE)",
        "DICOM": rb".{128}DICM",
        "FITS": rb"SIMPLE  =",
    }.items()
]

# Names in Pillow, if they differ.
_FORMATS = {"HEIC": "HEIF"}

_TEXT = rb"(?:\xef\xbb\xbf)?\s*"
# Other files that people send by mistake, and advice for them.
_OTHERS = [
    (re.compile(signature, re.DOTALL | re.IGNORECASE), what, advice)
    for signature, what, advice in (
        (
            rb"....ftyp|RIFF....AVI |\x1a\x45\xdf\xa3|\0\0\x01[\xb3\xba]|FLV",
            "a video",
            "send one frame of it as JPEG or PNG",
        ),
        (rb"%PDF-", "a PDF", "send a page of it as JPEG or PNG"),
        (
            rb"PK\x03\x04|PK\x05\x06|Rar!|7z\xbc\xaf",
            "an archive (zip or similar)",
            "unpack it and send the image",
        ),
        (
            rb"\x1f\x8b",
            "compressed with gzip",
            "decompress the image, or set Content-Encoding: gzip",
        ),
        (rb"version https://git-lfs", "a Git LFS pointer, not the file", "run 'git lfs pull' first"),
        (rb"\x93NUMPY", "a NumPy array", "send its pixels as the tensor 'pixels' over /v2, or as PNG"),
        (rb"\x89HDF|CDF\x01", "a file of arrays (HDF5 or NetCDF)", "send the picture as PNG"),
        (
            _TEXT + rb"(<\?xml.{0,2000}?)?(<!--.{0,2000}?)?(<!DOCTYPE svg.{0,500}?)?<svg",
            "an SVG drawing",
            "render it and send it as PNG",
        ),
        (
            _TEXT + rb"<(!doctype html|html|head|body)",
            "an HTML page, often an error page instead of an image",
            "check what was downloaded, and send the image itself",
        ),
        (_TEXT + rb"<\?xml|" + _TEXT + rb"<Error>", "XML", "send the image itself"),
        (
            _TEXT + rb"data:image/[a-z0-9.+-]+[;,]",
            "a data URL",
            'send it in JSON, as {"image": "data:..."} with Content-Type: application/json, or decode it',
        ),
        (
            _TEXT + rb"(https?|ftp|s3|gs|file)://\S+",
            "a URL in text",
            "the server does not fetch URLs; download the image and send it",
        ),
        (
            _TEXT + rb"[{\[]",
            "JSON",
            "set Content-Type: application/json, or send the image itself",
        ),
        (
            rb"--[^\r\n]{1,200}\r?\nContent-",
            "a form",
            "set Content-Type: multipart/form-data with its boundary, or send the image itself",
        ),
        (
            rb"(\xef\xbf\xbd){1,4}|\x89PNG(?!\r\n\x1a\n)|\xc3\xbf\xc3\x98\xc3\xbf|\xc2\x89PNG",
            "an image that was read or sent as text, which corrupts it",
            "read the file as bytes (with curl: --data-binary, not -d)",
        ),
    )
]
_BASE64 = re.compile(rb"[\s\"']*([A-Za-z0-9+/_-][A-Za-z0-9+/_\s-]{15,})")
_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"RIFF": "WEBP",
}
_READ_BASE64 = 64


def raw_file(data: bytes) -> Problem | None:
    """Camera raw files that begin like a TIFF, whose first picture is only a preview."""
    if data[:2] in (b"II", b"MM") and data[8:10] == b"CR":
        return _of_image("a camera raw file (CR2)", "")
    return None


def unidentified(data: bytes, allowed: str) -> Problem:
    """The error message for bytes that no decoder of the ``allowed`` formats accepts."""
    for name, signature in _IMAGES:
        if signature.match(data):
            taken = _FORMATS.get(name, name) in allowed.split(", ")
            return _broken(name) if taken else _of_image(name, allowed)
    for signature, what, advice in _OTHERS:
        if signature.match(data):
            return UndecodableImage(f"the bytes are {what}, not an image; {advice}")
    if encoded := _in_base64(data):
        return UndecodableImage(
            f"the bytes are {encoded} in base64, as text; decode it, or send it in JSON, as "
            '{"image": "..."} with Content-Type: application/json'
        )
    for signature_, name in _SIGNATURES.items():
        if len(signature_) > 2 and data.startswith(signature_):
            return _broken(name)
    return UndecodableImage(f"the bytes are not an image in a known format ({allowed})")


def _broken(name: str) -> Problem:
    return UndecodableImage(
        f"the bytes begin as {name}, but are corrupt or of an unsupported variant; save the image again "
        "as JPEG, or as PNG with 8 bits per sample"
    )


def _of_image(name: str, allowed: str) -> Problem:
    taken = f"; allowed are {allowed}" if allowed else ""
    return UnsupportedMediaType(f"the image is {name}{taken}: {_ADVICE}")


def _in_base64(data: bytes) -> str | None:
    """The format of an image in base64, in either alphabet."""
    found = _BASE64.match(data[:200])
    if found is None:
        return None
    text = b"".join(found[1].split())[:_READ_BASE64]
    text = text[: len(text) // 4 * 4].translate(bytes.maketrans(b"-_", b"+/"))
    try:
        begins = base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
    long_ones = (
        name for signature, name in _SIGNATURES.items() if len(signature) > 2 and begins.startswith(signature)
    )
    return next(long_ones, None)
