"""One log format for all processes: time, level, process, message; on standard error."""

import logging
from contextvars import ContextVar

from app.settings import LogLevel

# Of the request that is being answered; it goes into every log line that is written meanwhile.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def configure_logging(level: LogLevel, process: str) -> None:
    """Log from ``level`` up. Other libraries' chatter starts at warning."""
    logging.basicConfig(
        level=logging.WARNING,
        format=f"%(asctime)s %(levelname)-7s {process}: %(message)s",
        force=True,
    )
    for name in ("app", "models", "__main__"):
        logging.getLogger(name).setLevel(level.upper())
