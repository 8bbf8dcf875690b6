"""How much, and how long: the queue, bodies, images, connections, deadlines."""

from pydantic import BaseModel, Field

from app.settings.truncated_images import TruncatedImages


class LimitSettings(BaseModel):
    """How much, and how long: the queue, bodies, images, connections, deadlines."""

    max_queue_images: int = Field(
        1024,
        ge=1,
        description="Images that may wait, for all workers together; beyond them 429. One caller alone may "
        "have three quarters of them.",
    )
    max_queue_s: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="Predicted wait beyond which an image without a deadline_ms is answered 429.",
    )
    max_images_per_request: int = Field(64, ge=1, description="Images in one request.")
    max_body_bytes: int = Field(32 * 2**20, ge=1, description="Bytes of a request's body.")
    max_bodies_bytes: int = Field(
        512 * 2**20,
        ge=1,
        description="Memory of all bodies in an HTTP process, inflated and with what is made of them; beyond "
        "it 503.",
    )
    answer_cache_bytes: int = Field(
        0,
        ge=0,
        description="Memory of the answer cache in an HTTP process: the same image with the same options is "
        "then answered without decoding and computing it again. 0: no cache.",
    )
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
    decode_timeout_s: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="Time to decode one image; its process is then replaced."
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
    default_deadline_ms: int = Field(
        30_000, ge=1, description="Time after which a request without deadline_ms is given up, with 504."
    )
