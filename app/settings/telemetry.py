"""Settings of logs and live agreement."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field

from app.telemetry.logs import LogFormat, LogLevel

_OTHER_NAMES = {"warn": "warning"}


def _in_small_letters(value: object) -> object:
    """INFO, as most programs write it."""
    if not isinstance(value, str):
        return value
    word = value.lower()
    return _OTHER_NAMES.get(word, word)


class TelemetrySettings(BaseModel):
    """Settings of logs and live agreement."""

    log_format: Annotated[LogFormat, BeforeValidator(_in_small_letters)] = Field(
        "auto", description="text, or json (one object per line). auto: text in a terminal, otherwise json."
    )
    log_level: Annotated[LogLevel, BeforeValidator(_in_small_letters)] = Field(
        "info", description="Log level. debug logs every request."
    )
    agreement_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the pruned images that are computed again without pruning while the workers "
        "are idle, to measure how often pruning changes the top label. 0: none.",
    )
