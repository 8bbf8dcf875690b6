"""Settings of the server's addresses, ports and proxies."""

from pydantic import BaseModel, Field

from app.settings.types import Addresses, Host, InputName, RootPath


class HttpSettings(BaseModel):
    """Settings of the server's addresses, ports and proxies."""

    host: Host = Field(
        "127.0.0.1",
        description="Address to listen on. For a host name, the server listens on all its addresses.",
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on. 0: any free port.")
    http_workers: int = Field(1, ge=1, le=64, description="Number of HTTP processes.")
    operations_host: Host = Field("127.0.0.1", description="Address for --operations-port.")
    operations_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Separate port for /metrics, /livez and /readyz, without TLS and API keys. The main "
        "port then does not serve /metrics. 0: any free port.",
    )
    grpc_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port for the Open Inference Protocol over gRPC, with the same address, certificate "
        "and API keys as HTTP. Needs the extra grpc. Default: no gRPC.",
    )
    grpc_calls: int = Field(
        64,
        ge=1,
        le=65535,
        description="Maximum number of concurrent gRPC calls per HTTP process. The message of each call "
        "may be as large as --max-body-bytes.",
    )
    open_inference_input: InputName | None = Field(
        None,
        description="Offers only the input image or pixels in the Open Inference Protocol, for clients "
        "such as perf_analyzer that send all inputs of a model. Default: both are offered, and "
        "a request has one of them.",
    )
    shared_memory_bytes: int | None = Field(
        None,
        ge=1,
        description="Maximum total size of the shared memory regions that clients on this machine can "
        "register for tensors of the Open Inference Protocol. Default: shared memory is off.",
    )
    shared_memory_regions: int = Field(
        256, ge=1, description="Maximum number of registered shared memory regions."
    )
    trusted_proxies: Addresses = Field(
        None,
        description="Addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto headers "
        "are trusted, separated by commas. Default: none.",
    )
    root_path: RootPath | None = Field(
        None,
        description="Path prefix under which a proxy publishes the server, such as /vit, if the proxy does "
        "not strip it. Requests without the prefix are also answered.",
    )
