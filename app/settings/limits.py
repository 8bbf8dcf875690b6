"""Limits of the queue, bodies, images, connections and deadlines."""

from pydantic import BaseModel, Field

from app.settings.truncated_images import TruncatedImages


class LimitSettings(BaseModel):
    """Limits of the queue, bodies, images, connections and deadlines."""

    max_queue_images: int = Field(
        1024,
        ge=1,
        description="Maximum number of waiting images, for all workers together. Further images get 429. A "
        "single caller can have at most three quarters of them.",
    )
    max_queue_s: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="Maximum predicted wait of an image without deadline_ms. Beyond it, the image gets 429.",
    )
    max_images_per_request: int = Field(64, ge=1, description="Maximum number of images in a request.")
    max_body_bytes: int = Field(32 * 2**20, ge=1, description="Maximum size of a request body.")
    max_bodies_bytes: int = Field(
        512 * 2**20,
        ge=1,
        description="Maximum memory for all request bodies in an HTTP process, including decompressed and "
        "decoded data. Further requests get 503, and a request that alone needs more than half of it may "
        "get 413.",
    )
    answer_cache_bytes: int = Field(
        0,
        ge=0,
        description="Size of the answer cache in each HTTP process. With a cache, the same image with the "
        "same options is answered without decoding and computing it again. 0: no cache.",
    )
    max_image_pixels: int = Field(
        100_000_000,
        ge=1,
        description="Maximum number of pixels of a decoded image, before it is resized. Large JPEGs are "
        "decoded at a half, a quarter or an eighth of their width and height, and may be "
        "correspondingly larger.",
    )
    truncated_images: TruncatedImages = Field(
        "refuse",
        description="How to handle truncated JPEGs: refuse, or answer with a warning if at least half of "
        "the rows are present.",
    )
    decode_timeout_s: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="Maximum time to decode one image. After it, the decoding process is replaced.",
    )
    max_connections: int = Field(
        10_000,
        ge=1,
        description="Maximum number of connections per HTTP process. Further connections get 503.",
    )
    max_connections_per_client: int | None = Field(
        None,
        ge=1,
        description="Maximum number of connections per client address (IPv6: per /64 network) and HTTP "
        "process. --trusted-proxies are not limited. Default: three quarters of "
        "--max-connections, and no limit for clients on this machine.",
    )
    head_timeout_s: float = Field(
        20.0,
        gt=0,
        allow_inf_nan=False,
        description="Maximum time for the TLS handshake and the request head.",
    )
    body_timeout_s: float = Field(
        20.0,
        gt=0,
        allow_inf_nan=False,
        description="Maximum time for the request body to arrive, plus the time that it takes at 16 KiB/s.",
    )
    write_timeout_s: float = Field(
        30.0,
        gt=0,
        allow_inf_nan=False,
        description="Maximum time for which a client may read its response at less than 16 KiB/s, or not "
        "at all.",
    )
    keep_alive_s: float = Field(
        75.0, gt=0, allow_inf_nan=False, description="Maximum idle time of a connection between requests."
    )
    default_deadline_ms: int = Field(
        30_000, ge=1, description="Deadline of requests without deadline_ms. After it, they get 504."
    )
