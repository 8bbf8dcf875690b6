"""/v2/systemsharedmemory, and infer requests whose tensors lie in a client's shared memory."""

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from app.http.regions.table import Regions
from app.main import create_app
from app.settings.settings import Settings
from tests.app.fakes import LOGITS, MODEL, FakeDispatch, encoded, picture
from tests.app.http.regions.conftest import make_memory
from tests.support.examples import examples

__all__ = ["make_memory"]

Make = Callable[..., str]
ClientOf = Callable[..., TestClient]

FOLDER = "/v2/systemsharedmemory"
INFER = "/v2/models/toy/infer"
LOGITS_BYTES = 4 * len(LOGITS)


@pytest.fixture
def client_of(dispatch: FakeDispatch, tmp_path: Path) -> Iterator[ClientOf]:
    """A client at that address of a front end with these settings: all of them know the same regions."""
    clients = []

    def make(address: str = "127.0.0.1", **given: Any) -> TestClient:
        regions = Regions(tmp_path / "regions", most_bytes=1_000_000, most_regions=4)
        app = create_app(Settings(**given), dispatch, regions=regions)
        client = TestClient(app, raise_server_exceptions=False, client=(address, 50000))
        client.__enter__()
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.__exit__()


@pytest.fixture
def local(client_of: ClientOf) -> TestClient:
    return client_of()


def register(client: TestClient, key: str, size: int, name: str = "in", **more: Any) -> httpx.Response:
    given = {"key": key, "byte_size": size, **more}
    return client.post(f"{FOLDER}/region/{name}/register", json=given)  # type: ignore[return-value]


def place(size: int, region: str = "in", offset: int = 0) -> dict[str, Any]:
    found = {"shared_memory_region": region, "shared_memory_byte_size": size}
    return {**found, "shared_memory_offset": offset} if offset else found


def pixels_input(shape: tuple[int, ...], **parameters: Any) -> dict[str, Any]:
    return {"name": "pixels", "datatype": "UINT8", "shape": list(shape), "parameters": parameters}


def infer(client: TestClient, given: dict[str, Any], *outputs: dict[str, Any]) -> httpx.Response:
    document = {"inputs": [given], "outputs": list(outputs), "parameters": {"keep_ratio": 0.5}}
    return client.post(INFER, json=document)  # type: ignore[return-value]


def error_of(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    error: str = response.json()["error"]
    return error


def content(key: str) -> bytes:
    return Path("/dev/shm", key.removeprefix("/")).read_bytes()


def test_regions_are_registered_told_and_forgotten(local: TestClient, make_memory: Make) -> None:
    """All of them or one by its name."""
    key = make_memory(bytes(100))
    assert register(local, key, 100, "a").content == b""
    assert register(local, key, 10, "b", offset=90).status_code == 200
    both = [
        {"name": "a", "key": key, "offset": 0, "byte_size": 100},
        {"name": "b", "key": key, "offset": 90, "byte_size": 10},
    ]
    assert local.get(f"{FOLDER}/status").json() == both
    assert local.get(f"{FOLDER}/region/b/status").json() == both[1:]
    assert local.post(f"{FOLDER}/region/a/unregister").status_code == 200
    assert local.get(f"{FOLDER}/status").json() == both[1:]
    assert local.post(f"{FOLDER}/unregister").status_code == 200
    assert local.get(f"{FOLDER}/status").json() == []
    assert "there is no region 'b'; register it before you use it" in error_of(
        local.get(f"{FOLDER}/region/b/status"),
        404,  # type: ignore[arg-type]
    )


def test_pixels_are_read_from_a_region_of_another_front_end(
    client_of: ClientOf, dispatch: FakeDispatch, make_memory: Make
) -> None:
    """As if they had come with the request, also from the middle of a region."""
    pixels = np.arange(21 * 35 * 3, dtype=np.uint8).reshape(1, 21, 35, 3)
    key = make_memory(bytes(7) + bytes(5) + pixels.tobytes())
    assert register(client_of(), key, pixels.nbytes + 5, offset=7).status_code == 200
    response = infer(
        client_of(), pixels_input(pixels.shape, **place(pixels.nbytes, offset=5)), {"name": "label"}
    )
    assert response.status_code == 200, response.text
    assert np.array_equal(dispatch.questions[-1].pixels, pixels[0])


def test_encoded_images_are_read_from_a_region(
    local: TestClient, dispatch: FakeDispatch, make_memory: Make
) -> None:
    files = [encoded(), encoded(picture(colour=(0, 200, 0)))]
    data = b"".join(struct.pack("<I", len(file)) + file for file in files)
    register(local, make_memory(data), len(data))
    given = {"name": "image", "datatype": "BYTES", "shape": [2, 1], "parameters": place(len(data))}
    response = infer(local, given, {"name": "index"})
    assert response.json()["outputs"][0]["shape"] == [2, 5]
    assert len(dispatch.questions) == 2
    assert not np.array_equal(dispatch.questions[0].pixels, dispatch.questions[1].pixels)


def test_outputs_are_written_into_a_region(local: TestClient, make_memory: Make) -> None:
    """Without data and parameters in the answer, as Triton's clients want it; others come as ever."""
    pixels, out = make_memory(bytes(12)), make_memory(b"\xff" * 200)
    register(local, pixels, 12)
    register(local, out, 200, "out")
    response = infer(
        local,
        pixels_input((1, 2, 2, 3), **place(12)),
        {"name": "logits", "parameters": place(100, "out", 8)},
        {"name": "label", "parameters": place(80, "out", 120)},
        {"name": "keep_ratio"},
    )
    logits, label, ratio = response.json()["outputs"]
    assert logits == {"name": "logits", "datatype": "FP32", "shape": [1, len(LOGITS)]}
    assert label == {"name": "label", "datatype": "BYTES", "shape": [1, 5]}
    assert ratio["data"] == [0.5]
    written = content(out)
    assert np.frombuffer(written[8 : 8 + LOGITS_BYTES], "<f4").tolist() == list(LOGITS)
    assert written[:8] == b"\xff" * 8
    assert written[8 + LOGITS_BYTES : 120] == b"\xff" * (112 - LOGITS_BYTES)
    (length,) = struct.unpack("<I", written[120:124])
    assert written[124 : 124 + length].decode() == MODEL.labels[0]


@pytest.mark.parametrize(
    ("given", "output", "words"),
    [
        (place(12, "other"), {}, "there is no region 'other'"),
        (place(13), {}, "the region 'in' has 12 bytes, too few for an offset of 0 and a size of 13"),
        (
            place(12, offset=1),
            {},
            "the region 'in' has 12 bytes, too few for an offset of 1 and a size of 12",
        ),
        (place(12, offset=10**40), {}, "too few for an offset of"),
        (place(6), {}, "the shape [1, 2, 2, 3], which is 12 bytes, but its data has 6"),
        ({"shared_memory_region": "in"}, {}, "no shared_memory_byte_size"),
        ({"shared_memory_byte_size": 12}, {}, "but no shared_memory_region"),
        ({**place(12), "binary_data_size": 0}, {}, "only one is allowed"),
        (place(12), place(LOGITS_BYTES - 1, "out"), f"the output logits has {LOGITS_BYTES} bytes"),
        (place(12), place(1000, "out"), "the region 'out' has 100 bytes"),
        (place(12), place(10, "nowhere"), "nowhere"),
        (place(12), {"shared_memory_offset": -1}, "shared_memory_offset"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_place_is_said(
    local: TestClient, make_memory: Make, given: dict[str, Any], output: dict[str, Any], words: str
) -> None:
    out = make_memory(bytes(100))
    register(local, make_memory(bytes(12)), 12)
    register(local, out, 100, "out")
    response = infer(local, pixels_input((1, 2, 2, 3), **given), {"name": "logits", "parameters": output})
    assert words in error_of(response, 422)
    assert content(out) == bytes(100)


def test_memory_that_shrank_or_went_after_its_registration_is_refused(
    local: TestClient, make_memory: Make
) -> None:
    """And the server goes on."""
    key = make_memory(bytes(1_000_000))
    register(local, key, 1_000_000)
    given = pixels_input((1, 500, 500, 3), **place(750_000))
    assert infer(local, given, {"name": "label"}).status_code == 200
    os.truncate(Path("/dev/shm", key[1:]), 4096)
    assert "has 4096 bytes; 750000 are needed" in error_of(infer(local, given), 422)
    Path("/dev/shm", key[1:]).unlink()
    assert "does not exist" in error_of(infer(local, given), 422)
    assert local.get("/livez").status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"key": "/none", "byte_size": 5}, 422, "it does not exist; create it before"),
        ({"key": "../etc/passwd", "byte_size": 5}, 422, "not a valid name of POSIX shared memory"),
        ({"key": "KEY", "byte_size": 101}, 422, "has 100 bytes; 101 are needed"),
        ({"key": "KEY", "byte_size": 1, "offset": 100}, 422, "has 100 bytes; 101 are needed"),
        ({"key": "KEY", "byte_size": 0}, 422, "byte_size"),
        ({"key": "KEY", "byte_size": 1, "offset": -1}, 422, "offset"),
        ({"key": "KEY", "byte_size": 10**30}, 422, "byte_size"),
        ({"key": "KEY"}, 422, "byte_size"),
        ({"byte_size": 5}, 422, "key"),
        ({"key": 5, "byte_size": 5}, 422, "key"),
        ([], 422, "key"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_registration_is_said(
    local: TestClient, make_memory: Make, body: Any, status: int, words: str
) -> None:
    text = json.dumps(body).replace("KEY", make_memory(bytes(100)))
    response = local.post(f"{FOLDER}/region/a/register", content=text)
    assert words in error_of(response, status)  # type: ignore[arg-type]
    assert local.get(f"{FOLDER}/status").json() == []


@settings(max_examples=examples(30), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.text(max_size=40),
    offset=st.integers(-10, 2**65),
    size=st.integers(-10, 2**65),
    name=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20),
)
def test_no_registration_is_a_fault_of_the_server(
    local: TestClient, key: str, offset: int, size: int, name: str
) -> None:
    path = f"{FOLDER}/region/{quote(name, safe='')}/register"
    response = local.post(path, json={"key": key, "offset": offset, "byte_size": size})
    assert 400 <= response.status_code < 500, response.text


def test_names_are_printable_and_not_long(local: TestClient, make_memory: Make) -> None:
    key = make_memory(bytes(1))
    for name in ("%00", "a%0Ab", "x" * 256):
        assert "printable" in error_of(register(local, key, 1, name), 422)
    assert register(local, key, 1, "a%20b%C3%A9").status_code == 200


def test_it_is_among_the_extensions_where_it_is_offered(local: TestClient, client: TestClient) -> None:
    assert "system_shared_memory" in local.get("/v2").json()["extensions"]
    assert "system_shared_memory" not in client.get("/v2").json()["extensions"]


ROUTES = [
    ("GET", f"{FOLDER}/status"),
    ("GET", f"{FOLDER}/region/a/status"),
    ("POST", f"{FOLDER}/region/a/register"),
    ("POST", f"{FOLDER}/region/a/unregister"),
    ("POST", f"{FOLDER}/unregister"),
    ("GET", "/v2/cudasharedmemory/status"),
    ("POST", "/v2/cudasharedmemory/unregister"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_the_setting_it_is_not_offered(client: TestClient, method: str, path: str) -> None:
    """And the answer names the setting."""
    assert "--shared-memory-bytes" in error_of(client.request(method, path), 404)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("127.8.9.10", {}, 200),
        ("::1", {}, 200),
        ("::ffff:127.0.0.1", {}, 200),
        ("10.0.0.7", {}, 403),
        ("172.17.0.1", {}, 403),
        ("2001:db8::1", {}, 403),
        ("unknown", {}, 403),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, 403),
        ("127.0.0.1", {"Forwarded": "for=127.0.0.1"}, 403),
        ("127.0.0.1", {"Via": "1.1 proxy"}, 403),
        ("127.0.0.1", {"X-Real-IP": "127.0.0.1"}, 403),
    ],
)
def test_it_is_for_clients_on_this_machine(
    client_of: ClientOf, make_memory: Make, address: str, headers: dict[str, str], status: int
) -> None:
    """What a proxy has sent on is not local, whatever it says."""
    register(client_of(), make_memory(bytes(12)), 12)
    client = client_of(address)
    for method, path in ROUTES:
        if not path.endswith("/register") and "/region/" not in path:
            assert client.request(method, path, headers=headers).status_code == status
    if status == 403:
        document = {"inputs": [pixels_input((1, 2, 2, 3), **place(12))]}
        said = error_of(client.post(INFER, json=document, headers=headers), 403)  # type: ignore[arg-type]
        assert "on the server's own machine" in said
        assert client_of().get(f"{FOLDER}/status").json() != []


def test_a_region_belongs_to_the_key_that_registered_it(
    client_of: ClientOf, make_memory: Make, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("anna:annas-key-of-sixteen\nberta:bertas-key-of-sixteen\n")
    client = client_of(api_keys_file=keys)
    anna, berta = ({"X-API-Key": f"{name}s-key-of-sixteen"} for name in ("anna", "berta"))
    key = make_memory(bytes(12))
    path = f"{FOLDER}/region/in/register"
    assert client.post(path, json={"key": key, "byte_size": 12}).status_code == 401
    assert client.post(path, json={"key": key, "byte_size": 12}, headers=anna).status_code == 200
    document = {"inputs": [pixels_input((1, 2, 2, 3), **place(12))]}
    assert client.post(INFER, json=document, headers=anna).status_code == 200
    assert "there is no region 'in'" in error_of(client.post(INFER, json=document, headers=berta), 422)  # type: ignore[arg-type]
    assert client.get(f"{FOLDER}/status", headers=berta).json() == []
    assert client.post(f"{FOLDER}/unregister", headers=berta).status_code == 200
    assert len(client.get(f"{FOLDER}/status", headers=anna).json()) == 1


def test_an_input_is_no_larger_than_a_body(client_of: ClientOf, make_memory: Make) -> None:
    client = client_of(max_body_bytes=1000)
    register(client, make_memory(bytes(1200)), 1200)
    response = infer(client, pixels_input((1, 20, 20, 3), **place(1200)))
    assert "1200 bytes in shared memory; at most 1000" in error_of(response, 413)


def test_of_cuda_shared_memory_there_is_none(local: TestClient) -> None:
    """Which is what clients hear that ask before they use the system's."""
    assert local.get("/v2/cudasharedmemory/status").json() == []
    assert local.post("/v2/cudasharedmemory/unregister").status_code == 200
    response = local.post("/v2/cudasharedmemory/region/a/register", json={})
    assert "only system shared memory is supported" in error_of(response, 404)  # type: ignore[arg-type]


def test_a_request_whose_output_has_no_room_has_failed(local: TestClient, make_memory: Make) -> None:
    """In the statistics too."""

    def failed() -> int:
        stats = local.get("/v2/models/toy/stats").json()["model_stats"][0]["inference_stats"]
        count: int = stats["fail"]["count"]
        return count

    register(local, make_memory(bytes(12)), 12)
    before = failed()
    output = {"name": "logits", "parameters": place(4)}
    assert infer(local, pixels_input((1, 2, 2, 3), **place(12)), output).status_code == 422
    assert failed() == before + 1
