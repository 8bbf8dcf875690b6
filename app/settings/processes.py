"""Settings of when a process counts as hung, how soon it is replaced, and how it ends."""

from pydantic import BaseModel, Field


class ProcessSettings(BaseModel):
    """Settings of when a process counts as hung, how soon it is replaced, and how it ends."""

    restart_wait_s: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="Maximum time that a request waits, within its deadline, for a worker to start. After "
        "it, the request gets 503.",
    )
    hang_after_s: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="A process is killed and replaced if its main loop does not respond for this time, or "
        "if a batch takes this much longer than ten times its predicted time.",
    )
    load_limit_s: float = Field(
        600.0,
        gt=0,
        allow_inf_nan=False,
        description="Maximum time for a worker to load its models. After it, the worker is killed and "
        "replaced. The loading of a further model while serving is given up instead, with 504.",
    )
    slow_retry_s: float = Field(
        60.0,
        gt=0,
        allow_inf_nan=False,
        description="Time between attempts to start a worker after five starts in a row have failed.",
    )
    shutdown_grace_s: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="Maximum time for accepted requests to finish after SIGTERM.",
    )
