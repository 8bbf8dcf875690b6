"""Settings of logs and live agreement."""

from pydantic import BaseModel, Field

from app.telemetry.logs import LogFormat, LogLevel


class TelemetrySettings(BaseModel):
    """Settings of logs and live agreement."""

    log_format: LogFormat = Field(
        "auto", description="text, or json (one object per line). auto: text in a terminal, otherwise json."
    )
    log_level: LogLevel = Field("info", description="Log level. debug logs every request.")
    agreement_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the pruned images that are computed again without pruning while the workers "
        "are idle, to measure how often pruning changes the top label. 0: none.",
    )
