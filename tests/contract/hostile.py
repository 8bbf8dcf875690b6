"""A hundred requests that no client should send, each with the status it must get."""

import base64
import gzip
import io
import json
import random
import struct
import zlib
from dataclasses import dataclass, field

import httpx
from PIL import Image

from tests.system.photographs import SHIPPED


@dataclass(frozen=True)
class Hostile:
    """One request and the status that is right for it."""

    name: str
    status: int
    content: bytes
    content_type: str | None = "image/jpeg"
    query: str = ""
    method: str = "POST"
    path: str = "/v1/classify"
    headers: dict[str, str] = field(default_factory=dict)

    def send(self, url: str) -> httpx.Response:
        headers = dict(self.headers)
        if self.content_type is not None:
            headers["Content-Type"] = self.content_type
        return httpx.request(
            self.method, f"{url}{self.path}{self.query}", content=self.content, headers=headers, timeout=60
        )


def encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing: a decompression bomb's head."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


def hostile_requests() -> list[Hostile]:
    """Broken images, wrong types, bombs, bad options, bad forms and bad JSON."""
    return [
        *_broken_images(),
        *_wrong_types(),
        *_bad_options(),
        *_bad_forms(),
        *_bad_json(),
        *_bad_tensors(),
        *_bad_encodings(),
        *_other(),
    ]


def _broken_images() -> list[Hostile]:
    jpeg = (SHIPPED / "coffee.jpg").read_bytes()
    image = Image.open(SHIPPED / "chelsea.jpg")
    others = {form: encoded(image.resize((90, 60)), form) for form in ("PNG", "WEBP", "GIF", "BMP", "TIFF")}
    cases = [
        Hostile(f"JPEG cut to {share:.0%}", 422, jpeg[: int(len(jpeg) * share)])
        for share in (0.01, 0.1, 0.5, 0.95)
    ]
    cases += [
        Hostile(f"{form} cut in half", 422, data[: len(data) // 2], "image/png")
        for form, data in others.items()
    ]
    cases += [
        Hostile(f"{form} cut to 12 bytes", 422, data[:12], "image/png") for form, data in others.items()
    ]
    draw = random.Random(3)
    cases += [
        Hostile(f"{size} random bytes", 422, draw.randbytes(size))
        for size in (1, 2, 3, 10, 100, 1000, 10_000, 100_000)
    ]
    cases += [
        Hostile("empty", 422, b""),
        Hostile("zeros", 422, bytes(5000)),
        Hostile("text", 422, b"not a photograph"),
        Hostile("HTML", 422, b"<html><body>no</body></html>"),
        Hostile(
            "SVG", 422, b'<svg xmlns="http://www.w3.org/2000/svg"><circle r="1"/></svg>', "image/svg+xml"
        ),
        Hostile("zip", 422, b"PK\x03\x04" + bytes(100)),
        Hostile("PDF", 422, b"%PDF-1.7\n" + bytes(100)),
        Hostile("JPEG head only", 422, b"\xff\xd8\xff\xe0"),
        Hostile("PNG signature only", 422, b"\x89PNG\r\n\x1a\n"),
        Hostile("PNG without pixels", 422, png_of(64, 64)),
        Hostile("PNG of no width", 422, png_of(0, 64)),
        Hostile("bomb of 30000 x 30000", 413, png_of(30_000, 30_000)),
        Hostile("bomb of 2 thousand million rows", 413, png_of(2, 2**31 - 1)),
        Hostile("bomb just above the limit", 413, png_of(10_001, 10_000)),
    ]
    return cases


def _wrong_types() -> list[Hostile]:
    body = b"anything"
    types = [
        "text/plain",
        "text/html",
        "video/mp4",
        "application/pdf",
        "application/xml",
        "audio/mpeg",
        "nonsense",
        "application/zip",
    ]
    cases = [Hostile(f"type {kind}", 415, body, kind) for kind in types]
    ppm = encoded(Image.new("RGB", (8, 8)), "PPM")
    ico = encoded(Image.new("RGB", (16, 16)), "ICO")
    psd = b"8BPS\0\1" + bytes(60)
    cases += [
        Hostile(f"format {name}", 415, data) for name, data in (("PPM", ppm), ("ICO", ico), ("PSD", psd))
    ]
    return cases


def _bad_options() -> list[Hostile]:
    jpeg = (SHIPPED / "chelsea.jpg").read_bytes()
    queries = [
        "keep_ratio=0", "keep_ratio=-0.5", "keep_ratio=1.01", "keep_ratio=nan", "keep_ratio=inf", "keep_ratio=half",
        "keep_ratio=", "keep_ratio=0.5&compute=0.5", "keep_ratio=0.5&keep_ratio=0.6", "compute=0", "compute=2",
        "compute=0.05", "compute=x", "criterion=entropy", "criterion=", "top_k=0", "top_k=-1", "top_k=1.5",
        "top_k=99999", "mask=jpeg", "mask_stages=perhaps", "deadline_ms=0", "deadline_ms=-1", "deadline_ms=soon",
        "deadline_ms=999999999", "keep_mass=0", "keep_mass=1.5", "keep_mass=0.5&keep_ratio=0.5", "keep_mass=0.5&reducer=merge",
        "reducer=blend", "cascade=perhaps", "cascade=true&keep_ratio=0.5", "cascade=true&reducer=fuse", "seed=-1", "seed=4294967296", "unknown=1", "image=x", "Keep_Ratio=0.5",
    ]  # fmt: skip
    return [Hostile(f"?{query}", 422, jpeg, query=f"?{query}") for query in queries]


def _bad_forms() -> list[Hostile]:
    jpeg = (SHIPPED / "chelsea.jpg").read_bytes()
    kind = "multipart/form-data; boundary=b"

    def form(*parts: bytes) -> bytes:
        return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"

    image = b'Content-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n' + jpeg
    empty = b'Content-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'

    def text(name: str, value: str) -> bytes:
        return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()

    return [
        Hostile("form without boundary", 400, form(image), "multipart/form-data"),
        Hostile("form with another boundary", 400, form(image), "multipart/form-data; boundary=other"),
        Hostile("form of nothing", 400, b"", kind),
        Hostile("form without image", 400, form(text("top_k", "1")), kind),
        Hostile("form with an empty image", 422, form(empty), kind),
        Hostile("form with one good and one empty image", 422, form(image, empty), kind),
        Hostile("form with bad options", 400, form(image, text("options", "{")), kind),
        Hostile("form with options of another kind", 422, form(image, text("options", "7")), kind),
        Hostile("form with too many options", 422, form(image, text("options", "[{}, {}]")), kind),
        Hostile("form with a bad ratio", 422, form(image, text("keep_ratio", "7")), kind),
        Hostile("form with an unknown field", 422, form(image, text("ratio", "0.5")), kind),
        Hostile("form with 65 images", 413, form(*[image] * 65), kind),
        Hostile("form that is no form", 400, b"hello", kind),
    ]


def _bad_json() -> list[Hostile]:
    photo = base64.b64encode((SHIPPED / "chelsea.jpg").read_bytes()).decode()
    documents: list[tuple[str, int, object]] = [
        ("a list", 400, []), ("a number", 400, 5), ("nothing in it", 422, {}), ("null image", 422, {"image": None}),
        ("image as number", 422, {"image": 5}), ("image and images", 422, {"image": photo, "images": []}),
        ("no images", 400, {"images": []}), ("images as string", 422, {"images": photo}),
        ("images as strings", 422, {"images": [photo]}), ("not base64", 400, {"image": "%%%"}),
        ("base64 of nothing", 422, {"image": ""}), ("base64 of text", 422, {"image": base64.b64encode(b"hi").decode()}),
        ("ratio as list", 422, {"image": photo, "keep_ratio": [0.5]}),
        ("ratio as object", 422, {"image": photo, "keep_ratio": {}}),
        ("top_k as string", 422, {"image": photo, "top_k": "many"}),
        ("one bad of two", 422, {"images": [{"image": photo}, {"image": photo, "keep_ratio": 9}]}),
        ("image as URL", 400, {"image": "https://example.org/a.jpg"}), ("image as path", 400, {"image": "/home/me/a.jpg"}),
        ("image as hex", 400, {"image": (SHIPPED / "chelsea.jpg").read_bytes().hex()}), ("undefined", 400, {"image": "undefined"}),
        ("ratio as true", 422, {"image": photo, "keep_ratio": True}),
        ("65 images", 413, {"images": [{"image": "aGk="}] * 65}),
    ]  # fmt: skip
    kind = "application/json"
    cases = [
        Hostile(f"JSON: {name}", status, json.dumps(value).encode(), kind)
        for name, status, value in documents
    ]
    return [
        *cases,
        Hostile("JSON: broken", 400, b'{"image": ', kind),
        Hostile("JSON: empty", 400, b"", kind),
        Hostile("JSON: not UTF-8", 400, b'{"image": "\xff\xfe"}', kind),
        Hostile("JSON: very deep", 400, b"[" * 100_000, kind),
    ]


def _bad_tensors() -> list[Hostile]:
    photo = (SHIPPED / "chelsea.jpg").read_bytes()
    path = "/v2/models/trimvit-small-109/infer"

    def tensor(name: str, shape: list[int], datatype: str, size: int) -> bytes:
        given = {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
        return json.dumps({"inputs": [given]}).encode()

    def case(name: str, status: int, head: bytes, data: bytes, length: str | None = None) -> Hostile:
        headers = {"Inference-Header-Content-Length": str(len(head)) if length is None else length}
        return Hostile(f"tensor: {name}", status, head + data, None, path=path, headers=headers)

    claims_4_gib = struct.pack("<I", 2**32 - 1) + photo
    one = struct.pack("<I", len(photo)) + photo
    return [
        case("an element of 4 GiB", 422, tensor("image", [1], "BYTES", len(claims_4_gib)), claims_4_gib),
        case("2^62 elements", 413, tensor("image", [2**62], "BYTES", len(one)), one),
        case("two elements, of which one is there", 422, tensor("image", [2], "BYTES", len(one)), one),
        case("one element too much", 422, tensor("image", [1], "BYTES", 2 * len(one)), one + one),
        case("a size beyond the body", 422, tensor("image", [1], "BYTES", 2**62), one),
        case("a negative size", 422, tensor("image", [1], "BYTES", -4), one),
        case("pixels of terabytes", 422, tensor("pixels", [1, 2**20, 2**20, 3], "UINT8", 3), b"abc"),
        case("pixels of no height", 422, tensor("pixels", [1, 0, 9, 3], "UINT8", 0), b""),
        case("a line of pixels", 413, tensor("pixels", [1, 1, 70_000, 3], "UINT8", 210_000), bytes(210_000)),
        case("JSON cut short", 400, tensor("image", [1], "BYTES", len(one)), one, "20"),
        case("JSON beyond the body", 400, tensor("image", [1], "BYTES", len(one)), one, "99999999"),
        case("no length of the JSON", 400, tensor("image", [1], "BYTES", len(one)), one, "many"),
        case("an element that is no image", 422, tensor("image", [1], "BYTES", 6), b"\x02\x00\x00\x00hi"),
    ]


def _bad_encodings() -> list[Hostile]:
    photo = (SHIPPED / "chelsea.jpg").read_bytes()
    bomb = gzip.compress(bytes(40 * 2**20))
    routes = ("/v1/classify", "/", "/v2/models/trimvit-small-109/infer")

    def case(name: str, status: int, coding: str, content: bytes, path: str) -> Hostile:
        headers = {"Content-Encoding": coding}
        return Hostile(f"{name} to {path}", status, content, None, path=path, headers=headers)

    return [
        case(name, status, coding, content, path)
        for path in routes
        for name, status, coding, content in (
            ("brotli", 415, "br", photo),
            ("three codings", 415, "gzip, gzip, gzip", photo),
            ("no gzip", 400, "gzip", photo),
            ("gzip cut short", 400, "gzip", gzip.compress(photo)[:-100]),
            ("raw deflate cut short", 400, "deflate", zlib.compress(photo)[2:-100]),
            ("gzip of 40 MiB", 413, "gzip", bomb),
            ("gzip of gzip of 40 MiB", 413, "gzip, gzip", gzip.compress(bomb)),
            ("ten thousand empty members", 400, "gzip", gzip.compress(b"") * 10_000),
        )
    ]


def _other() -> list[Hostile]:
    return [
        Hostile("a body above the limit", 413, bytes(33 * 2**20)),
        Hostile("no such path", 404, b"", path="/v1/classification"),
        Hostile("no such path of the protocol", 404, b"", path="/v2/classify"),
        Hostile("no image for a client of Hugging Face", 422, b"no", None, path="/"),
        Hostile("a bomb for a client of Hugging Face", 413, png_of(30_000, 30_000), None, path="/"),
        Hostile("wrong method", 405, b"", None, method="GET"),
        Hostile("wrong method on metrics", 405, b"", None, method="POST", path="/metrics"),
    ]
