"""When a process counts as hung, how soon it is replaced, and how it ends."""

from pydantic import BaseModel, Field


class ProcessSettings(BaseModel):
    """When a process counts as hung, how soon it is replaced, and how it ends."""

    restart_wait_s: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="Longest that a request waits, within its deadline, for a worker that is being started; "
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
        description="Longest that a worker may load before it counts as hung.",
    )
    slow_retry_s: float = Field(
        60.0,
        gt=0,
        allow_inf_nan=False,
        description="Time from one start of a worker to the next once five in a row have failed.",
    )
    shutdown_grace_s: float = Field(
        30.0, ge=0, allow_inf_nan=False, description="Time for accepted requests to finish on SIGTERM."
    )
