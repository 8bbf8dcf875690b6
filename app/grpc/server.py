"""The gRPC server of a front end, in its event loop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from starlette.types import ASGIApp

from app.grpc.certificates import credentials
from app.grpc.protocol import FILE, SERVICE
from app.grpc.service import Health, InferenceService
from app.settings.settings import Settings

_BESIDE_IMAGES = 64 * 1024  # bytes of a message in addition to images: names, shapes, parameters
_LAST_CALLS_S = 1.0  # the application has answered all accepted calls by then; the rest are cancelled
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


@asynccontextmanager
async def grpc_server(app: ASGIApp, settings: Settings) -> AsyncIterator[None]:
    """A context manager that serves the gRPC port. Every front end listens there, and the kernel distributes
    connections among them. Raises RuntimeError if the port cannot be listened on, and TlsError."""
    secure = settings.tls_certificate is not None
    server = grpc.aio.server(
        # A message is completely in memory before it can be checked, so this limits the memory for messages.
        maximum_concurrent_rpcs=settings.grpc_calls,
        options=(
            ("grpc.max_receive_message_length", settings.max_body_bytes + _BESIDE_IMAGES),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 1),
            ("grpc.max_connection_idle_ms", int(settings.keep_alive_s * 1000)),
        ),
    )
    server.add_generic_rpc_handlers((InferenceService(app, secure=secure).handlers(),))
    health_pb2_grpc.add_HealthServicer_to_server(Health(app), server)
    reflection.enable_server_reflection(
        (SERVICE, _HEALTH, reflection.SERVICE_NAME), server, _described_services()
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.grpc_port}"
    if secure:
        server.add_secure_port(address, credentials(settings))
    else:
        server.add_insecure_port(address)
    await server.start()
    try:
        yield
    finally:
        await server.stop(_LAST_CALLS_S)


def _described_services() -> DescriptorPool:
    """The services that reflection describes."""
    pool = DescriptorPool()
    for file in (FILE, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        pool.AddSerializedFile(file.serialized_pb)
    return pool
