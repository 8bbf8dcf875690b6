"""Requests that real clients send by mistake, and hostile ones on purpose: odd base64 and forms, compressed,
chunked, slow, with offers to upgrade, and options at the borders of what is allowed. As raw HTTP/1.1, since
client libraries would not send most of them."""

import base64
import gzip
import json
import random
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import Any

from app.inference.options import option_schemas
from tests.system.mutants import mutants, sound_images

ANSWER_WITHIN_S = 60.0
_PAUSE_S = 0.02
_BOUNDARY = "b0undary"


@dataclass(frozen=True)
class Answer:
    """What came back. ``status`` 0: the connection ended without an answer."""

    status: int
    content_type: str
    body: bytes


@dataclass
class OddRequest:
    """One request. ``story``: what is odd about it; ``framed``: whether it says truly where it ends, so that
    it must be answered."""

    path: str
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    pieces: list[bytes] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    framed: bool = True

    def send(self, host: str, port: int) -> Answer:
        """The answer. Raises TimeoutError where neither an answer nor the connection's end comes."""
        with socket.create_connection((host, port), timeout=ANSWER_WITHIN_S) as connection:
            try:
                for number, piece in enumerate(self.pieces):
                    if number:
                        time.sleep(_PAUSE_S)
                    connection.sendall(piece)
                if not self.framed:
                    connection.shutdown(socket.SHUT_WR)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it was refused before all was sent; the answer may be there
            response = HTTPResponse(connection, method="POST")
            try:
                response.begin()
                return Answer(response.status, response.headers.get_content_type(), response.read())
            except (HTTPException, ConnectionResetError):
                return Answer(0, "", b"")


def odd_requests(count: int, seed: int, model: str) -> Iterator[OddRequest]:
    """So many requests, the same for the same seed."""
    draw = random.Random(seed)
    sound = [image for image in sound_images() if len(image) < 40_000]
    damaged = mutants(count, seed)
    for _ in range(count):
        image = next(damaged) if draw.random() < 0.2 else draw.choice(sound)
        request = draw.choice(
            (_raw, _raw, _form, _form, _json, _json, _hugging_face, _tensor_json, _tensor_binary, _invocation)
        )(image, draw, model)
        _compress(request, draw)
        _offer_upgrade(request, draw)
        _frame(request, draw)
        yield request


# --- what is asked -----------------------------------------------------------------------------------
def _borders(schema: dict[str, Any]) -> list[str]:
    """Values at and around the limits of a number, those of an enumeration and near them, and values of
    another kind."""
    choices = schema.get("oneOf", schema.get("anyOf", [schema]))
    values = [
        "",
        "null",
        "NaN",
        "Infinity",
        "0,5",
        "50%",
        "true",
        "-1",
        "1e400",
        "[0.5]",
        "0x1",
        "é",
        " 0.5 ",
    ]
    for choice in choices:
        for word in [*choice.get("enum", []), *([choice["const"]] if "const" in choice else [])]:
            values += [str(word), str(word).upper(), str(word)[:-1], f" {word}"]
        step = 1 if choice.get("type") == "integer" else 1e-9
        for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if name in choice:
                values += [str(choice[name] + offset) for offset in (-step, 0, step)]
        if choice.get("type") == "boolean":
            values += ["yes", "FALSE", "1", "on", "2"]
    return values


_BORDERS = {name: _borders(schema) for name, schema in option_schemas().items()}
_MISSPELT = ["keepRatio", "keep-ratio", "ratio", "topk", "K", "criterion[]", "", "keep_ratio\0", "маска"]


def _options(draw: random.Random) -> dict[str, str]:
    if draw.random() < 0.5:
        return draw.choice(({}, {"keep_ratio": "0.3"}, {"compute": "0.6", "top_k": "1"}))
    names = draw.sample(list(_BORDERS), k=draw.choice((1, 1, 2, 3)))
    options = {name: draw.choice(_BORDERS[name]) for name in names}
    if draw.random() < 0.05:
        options[draw.choice(_MISSPELT)] = "0.5"
    return options


def _query(options: dict[str, str], draw: random.Random) -> str:
    def quoted(text: str) -> str:
        return "".join(
            c if c.isascii() and c.isalnum() else "".join(f"%{b:02X}" for b in c.encode()) for c in text
        )

    pairs = [f"{quoted(name)}={quoted(value)}" for name, value in options.items()]
    if draw.random() < 0.03:
        pairs.append(draw.choice(("%", "%zz=1", "a=%ff", "=", "&&", "keep_ratio", "keep_ratio=0.5;top_k=2")))
    return f"?{'&'.join(pairs)}" if pairs else ""


# --- bodies ------------------------------------------------------------------------------------------
def _raw(image: bytes, draw: random.Random, model: str) -> OddRequest:
    kind = draw.choice(("image/jpeg", "image/jpg", "IMAGE/PNG", "application/octet-stream", "text/plain", ""))
    content = draw.choice((image,) * 8 + (base64.b64encode(image), image.replace(b"\n", b""), b"", image[:3]))
    if draw.random() < 0.05:
        content = draw.choice((b"https://example.org/cat.jpg", b"@photo.jpg", b"data:image/png;base64,AAAA"))
    headers = [("Content-Type", kind)] if kind else []
    return OddRequest("/v1/classify" + _query(_options(draw), draw), headers, content, story=["raw"])


def _invocation(image: bytes, draw: random.Random, model: str) -> OddRequest:
    if draw.random() < 0.5:
        return OddRequest("/invocations", [("Content-Type", "image/jpeg")], image, story=["SageMaker"])
    document = {"instances": [{"image": {"b64": _odd_base64(image, draw)}}] * draw.choice((1, 1, 2, 70))}
    headers = [("Content-Type", "application/json")]
    return OddRequest(f"/v1/models/{model}:predict", headers, _odd_json(document, draw), story=["KServe v1"])


def _form(image: bytes, draw: random.Random, model: str) -> OddRequest:
    end = draw.choice((b"\r\n", b"\r\n", b"\r\n", b"\n"))
    boundary = draw.choice((_BOUNDARY, _BOUNDARY, "a b'c", "-" * 60))
    dispositions = [
        'form-data; name="image"; filename="a.jpg"',
        'form-data; name="image"',
        "form-data; name=image; filename*=UTF-8''%e2%82%ac.jpg",
        'FORM-DATA; NAME="image"; FILENAME="a;b.jpg"',
        "attachment; filename=a.jpg",
        'form-data; name="image"; filename=""',
        "form-data",
        'form-data; name="' + "x" * 9000 + '"',
    ]
    parts = []
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        head = [b"Content-Disposition: " + draw.choice(dispositions[: draw.choice((3, 8))]).encode()]
        content = image
        if draw.random() < 0.2:
            head.append(b"Content-Type: " + draw.choice((b"image/jpeg", b"text/plain", b"image/*;q=1", b"x")))
        if draw.random() < 0.1:
            coding = draw.choice((b"base64", b"BASE64", b"binary", b"8bit", b"quoted-printable", b"x-odd"))
            head.append(b"Content-Transfer-Encoding: " + coding)
            content = base64.encodebytes(image) if b"64" in coding.lower() else image
        if draw.random() < 0.03:
            head += [b"X-Filler: " + b"y" * draw.choice((10, 100_000))] * draw.choice((1, 100))
        parts.append(end.join(head) + end * 2 + content)
    for name, value in _options(draw).items():
        safe = name.encode().replace(b'"', b"").replace(b"\0", b"")
        parts.append(b'Content-Disposition: form-data; name="' + safe + b'"' + end * 2 + value.encode())
    if draw.random() < 0.1:
        value = draw.choice((b"{}", b'{"keep_ratio": 0.5}', b"[{}]", b"[", b"7", b'[{"keep_ratio": null}]'))
        parts.append(b'Content-Disposition: form-data; name="options"' + end * 2 + value)
    dashes = b"--" + boundary.encode()
    body = draw.choice((b"", b"", b"", b"a preamble" + end))
    body += b"".join(dashes + end + part + end for part in parts)
    body += draw.choice((dashes + b"--" + end,) * 6 + (b"", dashes, dashes + b"--an epilogue"))
    named = draw.choice((f'boundary="{boundary}"', f'boundary="{boundary}"; charset=utf-8', "boundary=", ""))
    if boundary.isalnum() and draw.random() < 0.7:
        named = f"boundary={boundary}"
    kind = f"{draw.choice(('multipart/form-data', 'Multipart/Form-Data', 'multipart/mixed'))}; {named}"
    headers = [("Content-Type", kind)]
    return OddRequest("/v1/classify" + _query({}, draw), headers, body, story=["form", f"ends {end!r}"])


def _odd_base64(image: bytes, draw: random.Random) -> object:
    plain = base64.b64encode(image).decode()
    forms: list[object] = [
        plain,
        plain + "\n",
        base64.encodebytes(image).decode(),
        "\r\n".join(plain[at : at + 64] for at in range(0, len(plain), 64)),
        base64.urlsafe_b64encode(image).decode().rstrip("="),
        f"data:image/jpeg;base64,{plain}",
        f"DATA:image/jpeg;charset=utf-8;BASE64, {plain}",
        plain[:-1],
        plain[: len(plain) // 2] + "=" + plain[len(plain) // 2 :],
        repr(plain.encode()),
        image.hex(),
        "https://example.org/cat.jpg",
        "/home/me/cat.jpg",
        "[object Object]",
        "\ud800",
        "",
        None,
        17,
        list(image[:300]),
        [plain],
        {"b64": plain},
    ]
    return draw.choice(forms[: draw.choice((7, 7, len(forms)))])


def _odd_json(document: object, draw: random.Random) -> bytes:
    text = json.dumps(document)
    coding = draw.choice(("utf-8",) * 8 + ("utf-8-sig", "utf-16"))
    written = text.encode(coding)
    spoil: list[Callable[[], bytes]] = [
        lambda: written[: draw.randrange(len(written))],
        lambda: written + b"x",
        lambda: written.replace(b'"', b"'"),
        lambda: b"\xff" + written,
        lambda: written.replace(b": ", b": NaN, ", 1),
    ]
    return draw.choice(spoil)() if draw.random() < 0.08 else written


def _typed(options: dict[str, str], draw: random.Random) -> dict[str, object]:
    """The options as JSON values, some of them as the wrong kind."""

    def value(text: str) -> object:
        try:
            return text if draw.random() < 0.3 else json.loads(text)
        except ValueError:
            return text

    return {name: value(text) for name, text in options.items()}


def _json(image: bytes, draw: random.Random, model: str) -> OddRequest:
    one = {"image": _odd_base64(image, draw), **_typed(_options(draw), draw)}
    document: object = one
    if draw.random() < 0.4:
        document = {"images": [one] * draw.choice((0, 1, 2, 65)), **_typed(_options(draw), draw)}
    kind = draw.choice(("application/json", "application/json; charset=utf-8", "application/JSON;charset=x"))
    headers = [("Content-Type", kind)]
    return OddRequest("/v1/classify", headers, _odd_json(document, draw), story=["JSON"])


def _hugging_face(image: bytes, draw: random.Random, model: str) -> OddRequest:
    path = draw.choice(("/", f"/models/{model}", "/models/other"))
    if draw.random() < 0.5:
        return OddRequest(path + _query(_options(draw), draw), [], image, story=["Hugging Face, raw"])
    document = {"inputs": _odd_base64(image, draw), "parameters": _typed(_options(draw), draw)}
    headers = [("Content-Type", "application/json")]
    return OddRequest(path, headers, _odd_json(document, draw), story=["Hugging Face, JSON"])


def _tensor_json(image: bytes, draw: random.Random, model: str) -> OddRequest:
    shape = draw.choice(([1, 1], [1], [2], [], [0], [-1], [1, 3, 224, 224], [224, 224, 3], [2**40]))
    given = {
        "name": draw.choice(("image", "image", "pixels", "input__0")),
        "shape": shape,
        "datatype": draw.choice(("BYTES", "BYTES", "UINT8", "FP32", "bytes")),
        "data": [_odd_base64(image, draw)],
    }
    document = {"inputs": [given], "parameters": _typed(_options(draw), draw)}
    headers = [("Content-Type", "application/json")]
    return OddRequest(f"/v2/models/{model}/infer", headers, _odd_json(document, draw), story=["/v2, JSON"])


def _tensor_binary(image: bytes, draw: random.Random, model: str) -> OddRequest:
    if draw.random() < 0.5:
        data = struct.pack("<I", len(image) + draw.choice((0, 0, 0, 1, 2**31))) + image
        given: dict[str, object] = {"name": "image", "shape": [1, 1], "datatype": "BYTES"}
    else:
        rows, columns = draw.choice(((4, 5), (1, 1), (300, 7), (0, 3)))
        data = bytes(rows * columns * 3)
        shape = draw.choice(([1, rows, columns, 3], [rows, columns, 3], [1, 3, rows, columns]))
        given = {"name": "pixels", "shape": shape, "datatype": "UINT8"}
    given["parameters"] = {"binary_data_size": len(data) + draw.choice((0, 0, 0, -1, 1, 2**60))}
    head = json.dumps({"inputs": [given], "parameters": _typed(_options(draw), draw)}).encode()
    length = draw.choice((str(len(head)),) * 6 + ("-1", "1e3", str(2**63), f" {len(head)}", ""))
    headers = [("Inference-Header-Content-Length", length)]
    return OddRequest(f"/v2/models/{model}/infer", headers, head + data, story=["/v2, binary"])


# --- how it is sent ----------------------------------------------------------------------------------
def _compress(request: OddRequest, draw: random.Random) -> None:
    if draw.random() < 0.6:
        return
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = gzip.compress(request.body)
    codings: dict[str, tuple[str, bytes]] = {
        "gzip": ("gzip", packed),
        "gzip in capitals": ("GZIP", packed),
        "x-gzip": ("x-gzip", packed),
        "deflate": ("deflate", zlib.compress(request.body)),
        "raw deflate": ("deflate", deflater.compress(request.body) + deflater.flush()),
        "gzip twice": ("gzip, gzip", gzip.compress(packed)),
        "gzip with a tail": ("gzip", packed + b"tail"),
        "gzip of two members": ("gzip", packed + gzip.compress(b"more")),
        "gzip cut short": ("gzip", packed[: draw.randrange(len(packed))]),
        "not gzip": ("gzip", request.body),
        "gzip of a bomb": ("gzip", gzip.compress(bytes(40 * 2**20))),
        "brotli": ("br", request.body),
        "identity": ("identity", request.body),
        "nonsense": ("gzip;q=1,,", packed),
    }
    name, (coding, body) = draw.choice(list(codings.items()))
    request.story.append(name)
    request.headers.append(("Content-Encoding", coding))
    request.body = body


def _offer_upgrade(request: OddRequest, draw: random.Random) -> None:
    offers = {
        "h2c": [
            ("Connection", "Upgrade, HTTP2-Settings"),
            ("Upgrade", "h2c"),
            ("HTTP2-Settings", "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA"),
        ],
        "websocket": [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Version", "13"),
        ],
        "nothing known": [("Connection", "keep-alive, Upgrade"), ("Upgrade", "foo/2")],
        "leave to send": [("Expect", "100-continue")],
    }
    if draw.random() < 0.3:
        name, headers = draw.choice(list(offers.items()))
        request.story.append(f"offers {name}")
        request.headers += headers


def _frame(request: OddRequest, draw: random.Random) -> None:
    """The bytes on the wire, in one or several pieces."""
    body, headers = request.body, [("Host", "127.0.0.1"), *request.headers]
    way = draw.choice(("length",) * 10 + ("chunked",) * 6 + ("short", "long", "bad chunks", "both", "twice"))
    request.story.append(way)
    match way:
        case "length":
            headers.append(("Content-Length", str(len(body))))
        case "chunked" | "bad chunks" | "both":
            headers.append(("Transfer-Encoding", "chunked"))
            if way == "both":
                headers.append(("Content-Length", str(len(body))))
            body = _chunked(body, draw)
            if way == "bad chunks":
                body = body.replace(b"\r\n", draw.choice((b"\n", b";x\r\n", b"g\r\n", b"")), 3)
        case "short":  # what follows is taken for another request
            headers.append(("Content-Length", str(max(0, len(body) - draw.randint(1, 9)))))
        case "long":
            headers.append(("Content-Length", str(len(body) + draw.randint(1, 9))))
        case "twice":
            headers += [("Content-Length", str(len(body))), ("Content-Length", str(len(body) + 1))]
    request.framed = way in ("length", "chunked", "short", "twice", "both")
    if draw.random() < 0.5:
        draw.shuffle(headers)
    head = f"POST {request.path} HTTP/1.1\r\n".encode()
    head += b"".join(f"{name}: {value}\r\n".encode() for name, value in headers) + b"\r\n"
    whole = head + body
    if draw.random() < 0.9 or len(whole) < 2:
        request.pieces = [whole]
        return
    request.story.append("slow")
    cuts = sorted(draw.sample(range(1, len(whole)), k=min(len(whole) - 1, draw.randint(1, 12))))
    request.pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def _chunked(body: bytes, draw: random.Random) -> bytes:
    size = draw.choice((17, 1000, 65_536, len(body) or 1))
    size = max(size, len(body) // 2000 + 1)
    extension = draw.choice((b"", b"", b";a=b"))
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    trailer = draw.choice((b"", b"", b"X-Sum: 1\r\n"))
    framed = b"".join(b"%x" % len(chunk) + extension + b"\r\n" + chunk + b"\r\n" for chunk in chunks)
    return framed + b"0\r\n" + trailer + b"\r\n"
