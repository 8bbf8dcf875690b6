"""What the server says of itself."""

from pydantic import BaseModel, Field

from app.telemetry.logs import LogFormat, LogLevel


class TelemetrySettings(BaseModel):
    """What the server says of itself."""

    log_format: LogFormat = Field(
        "auto", description="text, or json: one object a line. auto: text on a terminal, else json."
    )
    log_level: LogLevel = Field("info", description="debug logs a line per request.")
    agreement_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the pruned images to run again unpruned while the workers are idle, to count "
        "how often pruning changes the first label. 0: none.",
    )
