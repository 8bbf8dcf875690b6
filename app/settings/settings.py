"""Every setting of the server: a flag of `trimvit serve`, and TRIMVIT_<NAME> in the environment."""

import re
from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from app.priority import Priority
from app.settings.truncated_images import TruncatedImages
from app.settings.types import Devices, File, Host, HostNames, RootPath
from app.settings.variables import PREFIX, settings_in
from app.telemetry.logs import LogFormat, LogLevel
from models.dtypes import DtypeName
from models.schedule import Criterion, Reducer, Rows

CudaGraphs = Literal["auto", "off"]

BUNDLED_MODEL = "trimvit-small-imagenette"


def _listed(value: object) -> object:
    """Blocks as they are typed in an environment variable: 4,7,10."""
    if isinstance(value, str):
        return value.split(",")
    return (value,) if isinstance(value, int) else value


def _ascending(blocks: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if blocks is not None and list(blocks) != sorted(set(blocks)):
        raise ValueError("the blocks must ascend, as in 4,7,10")
    return blocks


Blocks = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...] | None, BeforeValidator(_listed), AfterValidator(_ascending)
]


def _names(value: object) -> object:
    """Names as they are typed in a flag or an environment variable: with commas between them."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


def _address(text: str) -> str:
    try:
        ip_network(text)
    except ValueError:
        raise ValueError(f"{text!r} is no address and no network, as in 10.0.0.7 or 10.0.0.0/8") from None
    return text


def _origin(text: str) -> str:
    if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:\d+)?|https?://\[[0-9a-f:]+\](:\d+)?", text):
        raise ValueError(f"{text!r} is no origin, as in https://example.org or http://localhost:3000")
    return text


Addresses = Annotated[tuple[Annotated[str, AfterValidator(_address)], ...] | None, BeforeValidator(_names)]
Origins = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...] | None, BeforeValidator(_names)]


class Settings(BaseSettings):
    """Serve a vision transformer that prunes its patches; each request chooses its keep ratio."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What was given, then the environment as app.settings.variables reads it."""
        assert isinstance(env_settings, EnvSettingsSource)
        env_settings.env_vars = settings_in(env_settings.env_vars)
        return init_settings, env_settings

    model: str = Field(
        BUNDLED_MODEL,
        description="Bundled name, timm name (weights from the hub), hf-hub:OWNER/NAME, or the path of a "
        "file or folder of weights. The bundled model knows ten classes; deit_small_patch16_224.fb_in1k "
        "knows a thousand.",
    )
    architecture: str | None = Field(
        None, description="timm architecture of weights that do not name their own."
    )
    patch_stride: int | None = Field(
        None,
        ge=1,
        description="Pixels from one patch to the next, at most the patch size. Default: the checkpoint's, "
        "else the patch size.",
    )
    labels: File | None = Field(
        None, description="File of labels in class order: one a line, or JSON (a list or a map)."
    )
    stages: Blocks = Field(
        None, description="Blocks that prune, counted from 1. Default: the checkpoint's, else 4, 7, 10 of 12."
    )
    rows: Rows | None = Field(
        None,
        description="Attention rows that decide. Default: the checkpoint's, else CLS where there is one.",
    )

    device: Devices = Field(
        "auto",
        description="auto (the first GPU, else the CPU), cpu, cuda:N; separated by commas, one engine each.",
    )
    engines: int = Field(
        1, ge=1, le=64, description="Engine processes for each device named; on a CPU they share its cores."
    )
    dtype: DtypeName = Field(
        "auto",
        description="auto: bfloat16 where the device computes in it, else float32 on a CPU and float16 on a "
        "GPU. Or float32, bfloat16, float16; int8 on a CPU with AVX-512 VNNI.",
    )
    threads: int = Field(
        0, ge=0, description="Compute threads of an engine. 0: its share of the cores; never more than cores."
    )
    streams: int = Field(
        0,
        ge=0,
        description="Batches an engine computes at once. 0: one per thread, to 8, on a CPU; two on a GPU.",
    )
    cuda_graphs: CudaGraphs = Field(
        "off", description="auto: small batches of one pruning as CUDA graphs on a GPU. Not tried on one yet."
    )
    max_batch_tokens: int = Field(
        0, ge=0, description="Tokens of a batch, weighted by their cost. 0: 4096 on a CPU, 65536 on a GPU."
    )
    max_queue_images: int = Field(
        1024,
        ge=1,
        description="Images an engine lets wait; beyond them it answers 429. One caller alone may have three "
        "quarters of them.",
    )
    max_queue_s: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="Predicted wait beyond which an image without a deadline_ms is answered 429.",
    )

    agreement_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the pruned images to run again unpruned while an engine is idle, to count how "
        "often pruning changes the first label. 0: none.",
    )

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
    api_keys_file: File | None = Field(
        None,
        description="File with one API key a line, as name:key or name:sha256:HEX; read again when it "
        "changes. Without it, and without TRIMVIT_API_KEYS, no key is asked for.",
    )
    max_priority: Priority = Field(
        "normal",
        description="Highest priority that a request may ask for, unless the line of its API key says "
        "otherwise: high, normal or batch.",
    )
    tls_certificate: File | None = Field(
        None, description="PEM file with the certificate chain. With it, the port speaks HTTPS only."
    )
    tls_key: File | None = Field(None, description="PEM file with the certificate's private key.")
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
    cors_origins: Origins = Field(
        None,
        description="Origins whose pages may call the API from a browser, separated by commas. Default: "
        "none but the server's own.",
    )
    allowed_hosts: HostNames = Field(
        None,
        description="Names of this server that a request's Host header may have beside those of this machine "
        "(localhost, 127.0.0.1), separated by commas; *.example.org: all names below it; *: every name. "
        "Default: every name where API keys are asked for or --host is not a loopback address, else none.",
    )
    decode_processes: int = Field(
        3,
        ge=1,
        le=64,
        description="Processes that decode images, per HTTP process. One caller gets all but one of them, so "
        "that its slow images never hold up others; with 1 they do.",
    )
    decode_timeout_s: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="Time to decode one image; its process is then replaced."
    )
    max_body_bytes: int = Field(32 * 2**20, ge=1, description="Bytes of a request's body.")
    max_image_pixels: int = Field(
        100_000_000,
        ge=1,
        description="Pixels of an image as it is decoded, before it is resized. A large JPEG is decoded at a "
        "half, a quarter or an eighth of its sides, and may have as many more.",
    )
    truncated_images: TruncatedImages = Field(
        "refuse",
        description="What becomes of a JPEG that ends too soon: refuse it, or answer it, with a warning, if "
        "at least half of its rows are there.",
    )
    max_bodies_bytes: int = Field(
        512 * 2**20,
        ge=1,
        description="Memory of all bodies in an HTTP process, inflated and with what is made of them; beyond "
        "it 503.",
    )
    max_connections: int = Field(
        10_000, ge=1, description="Connections that an HTTP process holds; beyond them 503."
    )
    max_connections_per_client: int | None = Field(
        None,
        ge=1,
        description="Connections of one address (IPv6: one /64 network) that an HTTP process holds; no limit "
        "for --trusted-proxies. Default: three quarters of --max-connections, but for this machine's own.",
    )
    head_timeout_s: float = Field(
        20.0,
        gt=0,
        allow_inf_nan=False,
        description="Time for a TLS handshake and a request's head to arrive.",
    )
    body_timeout_s: float = Field(
        20.0,
        gt=0,
        allow_inf_nan=False,
        description="Time for a request's body to arrive, beside what it needs at 16 KiB a second.",
    )
    write_timeout_s: float = Field(
        30.0,
        gt=0,
        allow_inf_nan=False,
        description="Time that a client may stand still, or read at less than 16 KiB a second, while its "
        "answer waits.",
    )
    keep_alive_s: float = Field(
        75.0, gt=0, allow_inf_nan=False, description="Time that a connection may be idle between requests."
    )
    max_images_per_request: int = Field(64, ge=1, description="Images in one request.")
    default_keep_ratio: float = Field(
        1.0, gt=0, le=1, description="Ratio of images that ask for none. 1 prunes nothing."
    )
    default_criterion: Criterion | None = Field(
        None, description="Criterion of images that ask for none. Default: the checkpoint's, else variance."
    )
    default_reducer: Reducer | None = Field(
        None, description="Reducer of images that ask for none. Default: the checkpoint's, else drop."
    )
    default_deadline_ms: int = Field(
        30_000, ge=1, description="Time after which a request without deadline_ms is given up, with 504."
    )

    restart_wait_s: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="Longest that a request waits, within its deadline, for an engine that is being started; "
        "then 503.",
    )

    hang_after_s: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="Silence of a process's main loop, or time of a batch beyond ten times the expected, "
        "after which the process is killed and replaced.",
    )
    load_limit_s: float = Field(
        600.0,
        gt=0,
        allow_inf_nan=False,
        description="Longest that an engine may load before it counts as hung.",
    )
    slow_retry_s: float = Field(
        60.0,
        gt=0,
        allow_inf_nan=False,
        description="Time from one start of an engine to the next once five in a row have failed.",
    )

    shutdown_grace_s: float = Field(
        30.0, ge=0, allow_inf_nan=False, description="Time for accepted requests to finish on SIGTERM."
    )
    log_format: LogFormat = Field(
        "auto", description="text, or json: one object a line. auto: text on a terminal, else json."
    )
    log_level: LogLevel = Field("info", description="debug logs a line per request.")
