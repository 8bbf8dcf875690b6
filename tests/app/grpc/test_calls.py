"""Calls over gRPC on the application with a fake dispatcher: answers, errors, deadlines, cancelling, keys."""

import asyncio
import hashlib
import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from app.errors import DeadlinePassed, NotReady, Overloaded, Problem
from app.grpc.asking import caller
from app.grpc.protocol import SERVICE, message_class
from app.grpc.server import grpc_server
from app.http.regions import memory
from app.http.regions.table import Regions
from app.http.routes.open_inference.tensors import read_elements
from app.main import create_app
from app.messages.repository import ModelEntry
from app.settings.settings import Settings
from tests.app.fakes import MODEL, FakeDispatch, encoded
from tests.app.http.regions.conftest import make_memory
from tests.app.security.test_tls import self_signed
from tests.system.server import free_port

__all__ = ["make_memory"]

pytestmark = pytest.mark.anyio

Call = Callable[..., Any]
Code = grpc.StatusCode
NAME = MODEL.name


class Client:
    """Calls by their names, with the fields of their messages."""

    def __init__(self, channel: grpc.aio.Channel, target: str) -> None:
        self.channel = channel
        self.target = target

    def call(
        self, method: str, message: Any = None, *, metadata: Any = (), timeout: float = 30, **fields: Any
    ) -> Any:
        request, response = (message_class(f"{method}{kind}") for kind in ("Request", "Response"))
        asked = self.channel.unary_unary(
            f"/{SERVICE}/{method}", request.SerializeToString, response.FromString
        )
        return asked(message or request(**fields), timeout=timeout, metadata=metadata)

    async def refused(self, method: str, message: Any = None, **fields: Any) -> tuple[Code, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(method, message, **fields)
        return caught.value.code(), caught.value.details() or ""


@asynccontextmanager
async def serving(
    dispatch: FakeDispatch, regions: Regions | None = None, **given: Any
) -> AsyncIterator[Client]:
    port = free_port()
    settings, target = Settings(grpc_port=port, **given), f"127.0.0.1:{port}"
    app = create_app(settings, dispatch, regions=regions)
    async with (
        app.router.lifespan_context(app),
        grpc_server(app, settings),
        _channel(target, settings) as channel,
    ):
        yield Client(channel, target)


def _channel(target: str, settings: Settings) -> grpc.aio.Channel:
    if settings.tls_certificate is None:
        return grpc.aio.insecure_channel(target)
    credentials = grpc.ssl_channel_credentials(settings.tls_certificate.read_bytes())
    return grpc.aio.secure_channel(target, credentials)


@pytest.fixture
def dispatch() -> FakeDispatch:
    return FakeDispatch()


@pytest.fixture
async def client(dispatch: FakeDispatch) -> AsyncIterator[Client]:
    async with serving(dispatch) as client:
        yield client


def infer(*images: bytes, **fields: Any) -> Any:
    """A request with these images as raw contents."""
    message = message_class("ModelInferRequest")(model_name=NAME, **fields)
    message.inputs.add(name="image", datatype="BYTES", shape=[len(images), 1])
    message.raw_input_contents.append(b"".join(struct.pack("<I", len(each)) + each for each in images))
    return message


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the fake tells nobody
            await asyncio.sleep(0.01)


def values(response: Any, name: str) -> bytes:
    place = [output.name for output in response.outputs].index(name)
    found: bytes = response.raw_output_contents[place]
    return found


async def test_images_are_answered_as_on_v2(client: Client, dispatch: FakeDispatch) -> None:
    message = infer(encoded(), encoded(), id="two")
    message.parameters["keep_ratio"].double_param = 0.25
    message.parameters["top_k"].int64_param = 1
    for name in ("index", "keep_ratio"):
        message.outputs.add(name=name)
    response = await client.call("ModelInfer", message)
    assert (response.model_name, response.model_version, response.id) == (NAME, "1", "two")
    assert [(each.name, each.datatype, list(each.shape)) for each in response.outputs] == [
        ("index", "INT32", [2, 1]),
        ("keep_ratio", "FP32", [2, 1]),
    ]
    assert [each.ask.pruning.keep_ratio for each in dispatch.questions] == [0.25, 0.25]
    assert struct.unpack("<2f", values(response, "keep_ratio")) == (0.25, 0.25)


async def test_without_outputs_all_are_answered(client: Client) -> None:
    """All but the embedding and errors, as on /v2."""
    response = await client.call("ModelInfer", infer(encoded()))
    metadata = await client.call("ModelMetadata", name=NAME)
    names = [each.name for each in metadata.outputs]
    assert [*(each.name for each in response.outputs), "embedding", "error"] == names


async def test_tritons_classification_is_an_output_parameter(client: Client) -> None:
    message = infer(encoded())
    message.outputs.add(name="score").parameters["classification"].int64_param = 1
    response = await client.call("ModelInfer", message)
    assert MODEL.labels[0].encode() in values(response, "score") or b":" in values(response, "score")
    assert response.outputs[0].datatype == "BYTES"


async def test_each_image_may_have_its_own_answer(client: Client) -> None:
    message = infer(b"no image", encoded())
    message.parameters["errors"].string_param = "each"
    for name in ("error", "index"):
        message.outputs.add(name=name)
    response = await client.call("ModelInfer", message)
    problem, none = read_elements(memoryview(values(response, "error")), 2)
    assert (json.loads(bytes(problem))["image"], bytes(none)) == (0, b"")
    assert struct.unpack("<10i", values(response, "index"))[::5] == (-1, 0)


async def test_images_and_pixels_may_be_typed_contents(client: Client, dispatch: FakeDispatch) -> None:
    message = message_class("ModelInferRequest")(model_name=NAME)
    tensor = message.inputs.add(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(encoded())
    await client.call("ModelInfer", message)
    message = message_class("ModelInferRequest")(model_name=NAME, model_version="1")
    tensor = message.inputs.add(name="pixels", datatype="UINT8", shape=[1, 2, 2, 3])
    tensor.contents.uint_contents.extend([255] * 12)
    await client.call("ModelInfer", message)
    assert len(dispatch.questions) == 2


async def test_what_is_known_of_server_and_model(client: Client) -> None:
    assert (await client.call("ServerLive")).live
    assert (await client.call("ServerReady")).ready
    assert (await client.call("ModelReady", name=NAME)).ready
    assert (await client.call("ServerMetadata")).name == "trimvit"
    metadata = await client.call("ModelMetadata", name=NAME, version="1")
    assert [tensor.name for tensor in metadata.inputs] == ["image", "pixels"]
    config = (await client.call("ModelConfig", name=NAME)).config
    assert config.max_batch_size == Settings().max_images_per_request
    assert [tensor.data_type for tensor in config.input] == [13, 2]  # TYPE_STRING, TYPE_UINT8
    assert all(tensor.optional for tensor in config.input)
    assert config.parameters["keep_ratio"].string_value == "1"
    assert config.parameters["criterion"].string_value == MODEL.method.criterion


async def test_a_model_that_may_be_loaded_is_not_ready(dispatch: FakeDispatch) -> None:
    """Triton says so, too; a name that nobody knows is NOT_FOUND."""
    dispatch.repository = (ModelEntry(NAME, "ready"), ModelEntry("small", "unloaded"))
    async with serving(dispatch, model_repository=True) as client:
        assert (await client.call("ModelReady", name=NAME)).ready
        for fields in ({}, {"version": "1"}):
            assert not (await client.call("ModelReady", name="small", **fields)).ready
        code, words = await client.refused("ModelReady", name="smal")
        assert (code, "there is no model 'smal'" in words) == (Code.NOT_FOUND, True)
        assert (await client.refused("ModelReady", name="small", version="2"))[0] == Code.NOT_FOUND


async def test_statistics_are_those_of_v2(client: Client) -> None:
    """Of one model, and of all where none is named; what batches have no time for is not set."""
    before = (await client.call("ModelStatistics", name=NAME, version="1")).model_stats[0]
    await client.call("ModelInfer", infer(encoded(), encoded()))
    response = await client.call("ModelStatistics")
    assert [each.name for each in response.model_stats] == [NAME]
    after = response.model_stats[0]
    assert after.inference_count == before.inference_count + 2
    assert after.inference_stats.success.count == before.inference_stats.success.count + 1
    assert after.inference_stats.queue.ns > before.inference_stats.queue.ns
    assert after.last_inference >= before.last_inference > 1_700_000_000_000 or before.last_inference == 0
    assert not any(each.HasField("compute_input") for each in after.batch_stats)


async def test_tensors_may_lie_in_shared_memory(
    dispatch: FakeDispatch, tmp_path: Path, make_memory: Callable[[bytes], str]
) -> None:
    """Registered, told, read, written and forgotten as over HTTP; what lies there has empty contents."""
    key = make_memory(bytes(range(12)) + bytes(100))
    regions = Regions(tmp_path / "regions", most_bytes=1000, most_regions=2)
    async with serving(dispatch, regions=regions) as client:
        await client.call("SystemSharedMemoryRegister", name="r", key=key, offset=0, byte_size=112)
        told = (await client.call("SystemSharedMemoryStatus")).regions
        assert [(each.name, each.key, each.offset, each.byte_size) for each in told.values()] == [
            ("r", key, 0, 112)
        ]
        message = message_class("ModelInferRequest")(model_name=NAME)
        tensor = message.inputs.add(name="pixels", datatype="UINT8", shape=[1, 2, 2, 3])
        place(tensor, 12)
        place(message.outputs.add(name="keep_ratio"), 4, offset=20)
        message.outputs.add(name="index")
        message.parameters["keep_ratio"].double_param = 0.5
        response = await client.call("ModelInfer", message)
        assert values(response, "keep_ratio") == b""
        assert len(values(response, "index")) == 20
        assert memory.read(key, 20, 4) == struct.pack("<f", 0.5)
        tensor.contents.uint_contents.append(1)
        code, why = await client.refused("ModelInfer", message)
        assert (code, "both contents and shared memory" in why) == (Code.INVALID_ARGUMENT, True)
        code, why = await client.refused("SystemSharedMemoryRegister", name="x", key="../x", byte_size=1)
        assert (code, "not a valid name of POSIX" in why) == (Code.INVALID_ARGUMENT, True)
        assert (await client.refused("SystemSharedMemoryStatus", name="x"))[0] == Code.NOT_FOUND
        await client.call("CudaSharedMemoryUnregister")
        assert not (await client.call("CudaSharedMemoryStatus")).regions
        assert (await client.refused("CudaSharedMemoryRegister", name="x"))[0] == Code.NOT_FOUND
        forwarded = await client.refused(
            "SystemSharedMemoryStatus", metadata=(("x-forwarded-for", "10.0.0.1"),)
        )
        assert forwarded[0] == Code.PERMISSION_DENIED
        await client.call("SystemSharedMemoryUnregister", name="r")
        assert not (await client.call("SystemSharedMemoryStatus")).regions


async def test_long_words_reach_the_client(
    dispatch: FakeDispatch, tmp_path: Path, make_memory: Callable[[bytes], str]
) -> None:
    """They are metadata, which may not be long: else the client sees an error of its own library."""
    key = make_memory(bytes(10))
    regions = Regions(tmp_path / "regions", most_bytes=1000, most_regions=64)
    async with serving(dispatch, regions=regions) as client:
        for number in range(64):
            name = f"{number}{'ü' * 250}"
            await client.call("SystemSharedMemoryRegister", name=name, key=key, byte_size=1)
        code, why = await client.refused("SystemSharedMemoryStatus", name="other")
        assert (code, len(why) < 2000) == (Code.NOT_FOUND, True)
        assert "and 61 more; register it before you use it" in why
        dispatch.fails = NotReady("ü" * 9000, retry_after_s=2)
        code, why = await client.refused("ModelInfer", infer(encoded()))
        assert (code, why[-4:]) == (Code.UNAVAILABLE, "ü...")


def place(tensor: Any, size: int, offset: int = 0) -> None:
    tensor.parameters["shared_memory_region"].string_param = "r"
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    tensor.parameters["shared_memory_offset"].int64_param = offset


async def test_tritons_parameter_of_streams_has_no_effect(client: Client) -> None:
    """perf_analyzer sends it with every request."""
    message = infer(encoded())
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    assert (await client.call("ModelInfer", message)).outputs
    message.parameters["triton_enable_empty_final_response"].string_param = "yes"
    code, why = await client.refused("ModelInfer", message)
    assert code == Code.INVALID_ARGUMENT
    assert "triton_enable_empty_final_response" in why


async def test_a_server_without_workers_is_not_ready(client: Client, dispatch: FakeDispatch) -> None:
    dispatch.model = None
    assert (await client.call("ServerLive")).live
    assert not (await client.call("ServerReady")).ready
    assert not (await client.call("ModelReady", name=NAME)).ready
    health = health_pb2_grpc.HealthStub(client.channel)  # type: ignore[arg-type]
    answer = await health.Check(health_pb2.HealthCheckRequest())  # type: ignore[misc]
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_health_is_of_the_server_and_of_the_service(client: Client) -> None:
    health = health_pb2_grpc.HealthStub(client.channel)  # type: ignore[arg-type]
    for name in ("", SERVICE):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))  # type: ignore[misc]
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Check(health_pb2.HealthCheckRequest(service="other"))  # type: ignore[misc]
    assert caught.value.code() == Code.NOT_FOUND


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"])
async def test_another_model_is_not_found(client: Client, method: str) -> None:
    code, why = await client.refused(method, name="other")
    assert code == Code.NOT_FOUND
    assert NAME in why
    assert (await client.refused(method, name=NAME, version="2"))[0] == Code.NOT_FOUND


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"])
@pytest.mark.parametrize("name", [f"{NAME}/ready", f"{NAME}/versions/1", f"{NAME}//", "/", "stats", "a\nb"])
async def test_a_name_that_would_be_another_path_is_no_model(client: Client, method: str, name: str) -> None:
    code, why = await client.refused(method, name=name)
    assert (code, "there is no model" in why) == (Code.NOT_FOUND, True)


async def test_neither_a_version_nor_other_messages_become_another_path(
    client: Client, dispatch: FakeDispatch
) -> None:
    code, why = await client.refused("ModelMetadata", name=NAME, version="1/ready")
    assert (code, "there is no version '1/ready'" in why) == (Code.NOT_FOUND, True)
    for method in ("ModelReady", "ModelMetadata", "ModelConfig"):
        code, why = await client.refused(method)
        assert (code, "name is empty" in why) == (Code.NOT_FOUND, True)
    message = infer(encoded())
    message.model_name = f"{NAME}/versions/1"
    code, why = await client.refused("ModelInfer", message)
    assert (code, "there is no model" in why) == (Code.NOT_FOUND, True)
    dispatch.repository = (ModelEntry(NAME, "ready"),)
    async with serving(dispatch, model_repository=True) as other:
        for name in ("", f"{NAME}/unload"):
            code, why = await other.refused("RepositoryModelLoad", model_name=name)
            assert (code, "model" in why) == (Code.NOT_FOUND, True)


async def test_a_region_has_a_name_without_slashes(client: Client) -> None:
    for method in ("SystemSharedMemoryRegister", "CudaSharedMemoryRegister"):
        for name in ("", "a/b", "x" * 256, "a\nb"):
            code, why = await client.refused(method, name=name)
            assert (code, "printable characters, without a slash" in why) == (Code.INVALID_ARGUMENT, True)
    for method in ("SystemSharedMemoryStatus", "SystemSharedMemoryUnregister"):
        assert (await client.refused(method, name="a/b"))[0] == Code.INVALID_ARGUMENT


def wrong(change: Callable[[Any], object]) -> Any:
    message = infer(encoded())
    change(message)
    return message


def too_much(message: Any) -> None:
    message.parameters["keep_ratio"].double_param = 2


def not_a_number(message: Any) -> None:
    message.parameters["keep_ratio"].double_param = float("nan")


WRONG: list[tuple[Callable[[Any], object], str]] = [
    (too_much, "keep_ratio"),
    (lambda m: m.parameters["keep_ratio"].SetInParent(), "'keep_ratio' has no value"),
    (not_a_number, "'keep_ratio' must be a finite number; got nan"),
    (lambda m: m.raw_input_contents.append(b""), "1 inputs and 2 raw_input_contents"),
    (lambda m: m.inputs[0].contents.bytes_contents.append(b""), "both contents and raw_input_contents"),
    (lambda m: setattr(m.inputs[0], "datatype", "FP32"), "datatype"),
    (lambda m: m.ClearField("inputs"), "0 inputs and 1 raw"),
    (lambda m: m.outputs.add(name="mask"), "mask"),
    (lambda m: m.inputs[0].shape.__setitem__(0, 2), "the shape has 2 elements"),
]


@pytest.mark.parametrize(
    ("message", "code", "said"),
    [
        *((wrong(change), Code.INVALID_ARGUMENT, said) for change, said in WRONG),
        (wrong(lambda m: setattr(m, "model_name", "other")), Code.NOT_FOUND, "other"),
        (infer(b"no image"), Code.INVALID_ARGUMENT, "image 0"),
        (infer(), Code.INVALID_ARGUMENT, "shape"),
    ],
)
async def test_what_is_wrong_is_said(client: Client, message: Any, code: Code, said: str) -> None:
    found, why = await client.refused("ModelInfer", message)
    assert found == code, why
    assert said in why


def typed(datatype: str, **contents: Any) -> Any:
    message = message_class("ModelInferRequest")(model_name=NAME)
    tensor = message.inputs.add(name="pixels", datatype=datatype, shape=[1, 1, 1, 3])
    for name, given in contents.items():
        getattr(tensor.contents, name).extend(given)
    return message


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (typed("UINT8", uint_contents=[0, 0, 256]), "from 0 to 255"),
        (typed("UINT8", int_contents=[0, 0, 0]), "has int_contents; allowed is uint_contents"),
        (typed("FP32", fp32_contents=[0, 0, 0]), "allowed is UINT8: send the photograph's own pixels"),
        (typed("UINT8"), "0"),
    ],
)
async def test_contents_of_another_type_are_refused(client: Client, message: Any, said: str) -> None:
    code, why = await client.refused("ModelInfer", message)
    assert code == Code.INVALID_ARGUMENT
    assert said in why


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (Overloaded("full", retry_after_s=2), Code.UNAVAILABLE),
        (NotReady("no worker", retry_after_s=2), Code.UNAVAILABLE),
        (DeadlinePassed("late"), Code.DEADLINE_EXCEEDED),
        (ValueError("unforeseen"), Code.INTERNAL),
    ],
)
async def test_problems_have_grpcs_codes(
    client: Client, dispatch: FakeDispatch, problem: Exception, code: Code
) -> None:
    dispatch.fails = problem
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.call("ModelInfer", infer(encoded()))
    assert caught.value.code() == code
    trailing = dict(caught.value.trailing_metadata() or ())
    assert trailing["x-request-id"]
    assert trailing.get("retry-after") == ("2" if code == Code.UNAVAILABLE else None)
    if not isinstance(problem, Problem):
        assert "unexpected error" in str(caught.value.details())


async def test_the_calls_deadline_is_the_images(client: Client, dispatch: FakeDispatch) -> None:
    await client.call("ModelInfer", infer(encoded()), timeout=5)
    assert dispatch.questions[-1].deadline_s <= 5
    message = infer(encoded())
    message.parameters["deadline_ms"].int64_param = 700
    await client.call("ModelInfer", message, timeout=5)
    assert dispatch.questions[-1].deadline_s <= 0.7


async def test_a_cancelled_call_withdraws_its_images(client: Client, dispatch: FakeDispatch) -> None:
    dispatch.wait_for = asyncio.Event()
    call = client.call("ModelInfer", infer(encoded()))
    await until(lambda: bool(dispatch.questions))
    call.cancel()
    await until(lambda: dispatch.cancelled == 1)
    dispatch.wait_for.set()
    assert (await client.call("ServerLive")).live


async def test_keys_are_asked_for(tmp_path: Path, dispatch: FakeDispatch) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"anna:sha256:{hashlib.sha256(b'secret').hexdigest()}\n")
    async with serving(dispatch, api_keys_file=keys) as client:
        code, why = await client.refused("ModelInfer", infer(encoded()))
        assert code == Code.UNAUTHENTICATED
        assert "API key" in why
        for pair in (("authorization", "Bearer secret"), ("x-api-key", "secret")):
            await client.call("ModelInfer", infer(encoded()), metadata=(pair,))
        assert (await client.call("ServerLive")).live


async def test_a_renewed_certificate_holds_for_new_connections(
    tmp_path: Path, dispatch: FakeDispatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And one that is wrong changes nothing."""
    files = self_signed(tmp_path)
    assert files.tls_key is not None
    given = {"tls_certificate": files.tls_certificate, "tls_key": files.tls_key}
    async with serving(dispatch, **given) as client:
        assert (await client.call("ServerLive")).live
        old = files.tls_key.read_bytes()
        self_signed(tmp_path)
        async with _channel(client.target, files) as channel:
            assert (await Client(channel, client.target).call("ServerLive")).live
        files.tls_key.write_bytes(old)
        async with _channel(client.target, files) as channel:
            assert (await Client(channel, client.target).call("ServerLive")).live
    assert "the gRPC certificate was not reloaded" in caplog.text


async def test_messages_beyond_the_largest_body_are_refused(dispatch: FakeDispatch) -> None:
    async with serving(dispatch, max_body_bytes=100_000) as client:
        code, why = await client.refused("ModelInfer", infer(bytes(200_000)))
        assert code == Code.RESOURCE_EXHAUSTED
        assert "larger than max" in why
        code, _ = await client.refused("ModelInfer", infer(bytes(120_000)))
        assert code == Code.RESOURCE_EXHAUSTED  # the application's own limit


async def test_no_more_calls_than_allowed_are_taken(dispatch: FakeDispatch) -> None:
    dispatch.wait_for = asyncio.Event()
    async with serving(dispatch, grpc_calls=1) as client:
        first = client.call("ModelInfer", infer(encoded()))
        await until(lambda: bool(dispatch.questions))
        assert (await client.refused("ServerLive"))[0] == Code.RESOURCE_EXHAUSTED
        dispatch.wait_for.set()
        await first


async def test_reflection_tells_of_the_service(client: Client, dispatch: FakeDispatch) -> None:
    def services(target: str) -> set[str]:
        with grpc.insecure_channel(target) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            assert database.FindFileContainingSymbol(SERVICE).service[0].name == "GRPCInferenceService"
            return set(database.get_services())

    async with serving(dispatch) as other:
        found = await asyncio.to_thread(services, other.target)
    assert {SERVICE, "grpc.health.v1.Health"} <= found


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:50000", ("127.0.0.1", 50000)),
        ("ipv6:%5B::1%5D:50000", ("::1", 50000)),
        ("ipv6:[::1]:50000", ("::1", 50000)),
        ("unix:", None),
        ("", None),
    ],
)
async def test_the_caller_is_known_by_its_address(peer: str, address: tuple[str, int] | None) -> None:
    assert caller(peer, (), secure=False).address == address
