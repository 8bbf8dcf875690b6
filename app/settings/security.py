"""Who may ask, and how they are kept apart: keys, priorities, TLS, browsers."""

from pydantic import BaseModel, Field

from app.priority import Priority
from app.settings.types import File, HostNames, Origins


class SecuritySettings(BaseModel):
    """Who may ask, and how they are kept apart: keys, priorities, TLS, browsers."""

    api_keys_file: File | None = Field(
        None,
        description="File with one API key a line, as name:key or name:sha256:HEX; read again when it "
        "changes. Without it, and without TRIMVIT_API_KEYS, no key is asked for.",
    )
    answer_cache_shared: bool = Field(
        default=False,
        description="Whether callers with different API keys may get each other's answers from the answer "
        "cache. Without keys it is shared by all callers.",
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
