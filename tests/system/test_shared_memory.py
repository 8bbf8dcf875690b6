"""Unmodified clients of Triton with tensors in shared memory, against a server of two front ends."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as shm
from google.protobuf import json_format
from PIL import Image
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from tests.system.photographs import SHIPPED
from tests.system.server import Server, free_port, running_server

MODEL = "trimvit-small-109"
CHINA = SHIPPED / "china.jpg"
ROOM = 4096  # bytes for the outputs

Client = triton_http.InferenceServerClient | triton_grpc.InferenceServerClient


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ("--http-workers", "2", "--grpc-port", str(free_port()), "--shared-memory-bytes", "20000000")
    with running_server(tmp_path_factory.mktemp("shared-memory"), *flags) as running:
        yield running


@pytest.fixture(params=[triton_http, triton_grpc], ids=["http", "grpc"])
def triton(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


@pytest.fixture
def client(server: Server, triton: ModuleType) -> Iterator[Client]:
    address = server.url.removeprefix("http://") if triton is triton_http else server.grpc
    with triton.InferenceServerClient(address) as client:
        yield client
        client.unregister_system_shared_memory()


@pytest.fixture
def memory() -> Iterator[Any]:
    """Makes shared memory of so many bytes: its key, and Triton's handle."""
    made: list[Any] = []

    def make(size: int) -> tuple[str, Any]:
        key = f"/trimvit-test-{os.getpid()}-{len(made)}"
        made.append(shm.create_shared_memory_region(key, key, size))
        return key, made[-1]

    yield make
    for handle in made:
        shm.destroy_shared_memory_region(handle)


def statuses(client: Client) -> dict[str, tuple[str, int, int]]:
    """Key, offset and size of each region, whichever client tells it."""
    if isinstance(client, triton_http.InferenceServerClient):
        found = {each["name"]: each for each in client.get_system_shared_memory_status()}
    else:
        status = client.get_system_shared_memory_status()
        found = json_format.MessageToDict(status, preserving_proto_field_name=True).get("regions", {})
    return {
        name: (each["key"], int(each.get("offset", 0)), int(each["byte_size"]))
        for name, each in found.items()
    }


def region_input(triton: ModuleType, name: str, array: np.ndarray, size: int) -> Any:
    tensor = triton.InferInput(name, list(array.shape), "BYTES" if array.dtype == object else "UINT8")
    tensor.set_shared_memory("input", size)
    return tensor


def pixels() -> np.ndarray:
    return np.asarray(Image.open(CHINA).convert("RGB"))[np.newaxis]


@pytest.mark.parametrize("name", ["image", "pixels"])
def test_tensors_lie_in_shared_memory(
    server: Server, client: Client, triton: ModuleType, memory: Any, name: str
) -> None:
    """An encoded image or pixels are read from a region, and logits and labels written into another: those of
    the same image sent over the connection. Many times over, so that both front ends are asked."""
    array = np.array([[CHINA.read_bytes()]], object) if name == "image" else pixels()
    data = serialize_byte_tensor(array) if name == "image" else array
    size = int(data.size if data.dtype == np.uint8 else len(data.item()))
    (key, handle), (out_key, out) = memory(size), memory(2 * ROOM)
    shm.set_shared_memory_region(handle, [data])
    client.register_system_shared_memory("input", key, size)
    client.register_system_shared_memory("output", out_key, 2 * ROOM)
    assert statuses(client) == {"input": (key, 0, size), "output": (out_key, 0, 2 * ROOM)}
    sent = triton.InferInput(name, list(array.shape), "BYTES" if name == "image" else "UINT8")
    sent.set_data_from_numpy(array)
    wanted = client.infer(MODEL, [sent], outputs=[triton.InferRequestedOutput("logits")]).as_numpy("logits")
    logits, label = (triton.InferRequestedOutput(output) for output in ("logits", "label"))
    logits.set_shared_memory("output", ROOM)
    label.set_shared_memory("output", ROOM, offset=ROOM)
    score = triton.InferRequestedOutput("score")
    for _ in range(8):
        shm.set_shared_memory_region(out, [np.zeros(2 * ROOM, np.uint8)])
        result = client.infer(
            MODEL,
            [region_input(triton, name, array, size)],
            outputs=[logits, label, score],
            parameters={"top_k": 1},
        )
        got = shm.get_contents_as_numpy(out, np.float32, wanted.shape)
        # bfloat16 has eight bits, and a logit may be near zero.
        assert np.allclose(got, wanted, atol=0.25)
        assert got.any()
        assert result.as_numpy("score").shape == (1, 1)
        length = int(shm.get_contents_as_numpy(out, np.uint32, (1,), offset=ROOM)[0])
        text = bytes(shm.get_contents_as_numpy(out, np.uint8, (length,), offset=ROOM + 4))
        names = httpx.get(f"{server.url}/v1/models").json()["models"][0]["labels"]
        assert text.decode() == names[int(got.argmax())]


def test_a_region_is_known_on_both_ports(server: Server, memory: Any) -> None:
    """What was registered over HTTP is read over gRPC, and forgotten there."""
    array = pixels()
    key, handle = memory(array.nbytes)
    shm.set_shared_memory_region(handle, [array])
    with (
        triton_http.InferenceServerClient(server.url.removeprefix("http://")) as over_http,
        triton_grpc.InferenceServerClient(server.grpc) as over_grpc,
    ):
        over_http.register_system_shared_memory("input", key, array.nbytes)
        result = over_grpc.infer(MODEL, [region_input(triton_grpc, "pixels", array, array.nbytes)])
        assert result.as_numpy("label").shape == (1, 5)
        over_grpc.unregister_system_shared_memory("input")
        assert statuses(over_http) == {}


def test_memory_that_shrinks_under_load_ends_no_process(
    server: Server, client: Client, triton: ModuleType, memory: Any
) -> None:
    """Its requests are refused in words, and those after it answered."""
    array = pixels()
    key, handle = memory(array.nbytes)
    shm.set_shared_memory_region(handle, [array])
    client.register_system_shared_memory("input", key, array.nbytes)
    before = {process.pid for process in server.processes("trimvit: http")}
    with Path(f"/dev/shm{key}").open("r+b") as file:
        for size in (array.nbytes, array.nbytes - 1, 4096, 0):
            file.truncate(size)
            given = region_input(triton, "pixels", array, array.nbytes)
            if size == array.nbytes:
                client.infer(MODEL, [given])
                continue
            with pytest.raises(InferenceServerException, match=f"has {size} bytes"):
                client.infer(MODEL, [given])
        file.truncate(array.nbytes)  # Triton's handle unmaps all of it
    assert {process.pid for process in server.processes("trimvit: http")} == before


def test_what_is_wrong_reaches_the_clients_user(client: Client, triton: ModuleType, memory: Any) -> None:
    key, _ = memory(100)
    client.register_system_shared_memory("input", key, 100)
    given = region_input(triton, "pixels", np.zeros((1, 6, 6, 3), np.uint8), 108)
    for call, words in (
        (lambda: client.register_system_shared_memory("input", key, 100), "unregister it first"),
        (lambda: client.register_system_shared_memory("x", "/trimvit-test-none", 1), "does not exist"),
        (lambda: client.register_system_shared_memory("x", "/../etc/passwd", 1), "not a valid name of POSIX"),
        (lambda: client.register_system_shared_memory("x", key, 101), "has 100 bytes; 101 are needed"),
        (lambda: client.infer(MODEL, [given]), "the region 'input' has 100 bytes"),
        (lambda: client.get_system_shared_memory_status("x"), "no region 'x'"),
        (
            lambda: client.register_cuda_shared_memory("x", b"", 0, 1),
            "only system shared memory is supported",
        ),
    ):
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert words in caught.value.message()
    client.unregister_cuda_shared_memory()
    client.unregister_system_shared_memory("never registered")
