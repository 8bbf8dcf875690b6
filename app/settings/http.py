"""Where the server listens, and what stands before it."""

from pydantic import BaseModel, Field

from app.settings.types import Addresses, Host, InputName, RootPath


class HttpSettings(BaseModel):
    """Where the server listens, and what stands before it."""

    host: Host = Field("127.0.0.1", description="Address to listen on, or a name: then all its addresses.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    http_workers: int = Field(1, ge=1, le=64, description="HTTP processes.")
    operations_host: Host = Field("127.0.0.1", description="Address of the operations port.")
    operations_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="A port of its own for /metrics, which the main port then does not serve, /livez and "
        "/readyz, without TLS and without API keys; 0 takes a free one.",
    )
    grpc_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="A port for the Open Inference Protocol over gRPC, on the same address, with the same "
        "certificate and API keys; needs the extra grpc. Default: none.",
    )
    grpc_calls: int = Field(
        64,
        ge=1,
        le=65535,
        description="gRPC calls at a time in each HTTP process. Each may hold a message of as many bytes as "
        "a body may have.",
    )
    open_inference_input: InputName | None = Field(
        None,
        description="The one input that models have in the Open Inference Protocol, image or pixels, for "
        "clients that send all there are, such as perf_analyzer. Default: both, of which a request has one.",
    )
    shared_memory_bytes: int | None = Field(
        None,
        ge=1,
        description="Bytes of shared memory that clients on this machine may register as regions, all "
        "together, for tensors of the Open Inference Protocol. Default: shared memory is not used.",
    )
    shared_memory_regions: int = Field(
        256, ge=1, description="Regions of shared memory that may be registered at a time."
    )
    trusted_proxies: Addresses = Field(
        None,
        description="Addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are "
        "believed, separated by commas. Default: none.",
    )
    root_path: RootPath | None = Field(
        None,
        description="Path under which a proxy publishes the server, such as /vit, where the proxy passes it "
        "on; requests without it are answered as well. A proxy that takes it off needs no setting.",
    )
