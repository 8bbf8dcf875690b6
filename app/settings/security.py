"""Settings of security: API keys, priorities, TLS, browsers."""

from pydantic import BaseModel, Field

from app.priority import Priority
from app.settings.types import File, HostNames, Origins


class SecuritySettings(BaseModel):
    """Settings of security: API keys, priorities, TLS, browsers."""

    api_keys_file: File | None = Field(
        None,
        description="File with one API key per line, as name:key or name:sha256:HEX. It is reloaded when "
        "it changes. Without it and without TRIMVIT_API_KEYS, no API key is required.",
    )
    answer_cache_shared: bool = Field(
        default=False,
        description="Shares the answer cache between callers with different API keys. Without API keys, it "
        "is always shared.",
    )
    max_priority: Priority = Field(
        "normal",
        description="Highest priority that requests can have: high, normal or batch. The line of an API "
        "key can override it.",
    )
    tls_certificate: File | None = Field(
        None, description="PEM file with the certificate chain. The port then only accepts HTTPS."
    )
    tls_key: File | None = Field(None, description="PEM file with the private key of the certificate.")
    cors_origins: Origins = Field(
        None,
        description="Origins of web pages that can call the API from a browser, separated by commas. "
        "Default: only the server's own.",
    )
    allowed_hosts: HostNames = Field(
        None,
        description="Host names accepted in the Host header in addition to those of this machine "
        "(localhost, 127.0.0.1), separated by commas. *.example.org accepts all subdomains, * "
        "every name. List the names that proxies and Prometheus use, too. Default: every name if "
        "API keys are required or --host is not a loopback address, otherwise none.",
    )
