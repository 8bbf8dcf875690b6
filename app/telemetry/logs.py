"""The log of all processes, on standard error: one line per event, as text for people or as JSON for
programs.

The request ID is in every line that is written while a request is answered. Nothing here reads a request's
body or headers, so no image and no secret can get into the log.
"""

import json
import logging
import sys
import time
from contextvars import ContextVar
from typing import Literal

LogFormat = Literal["auto", "text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

# ID of the request that is being processed.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

# Fields that `extra` may add to a line, in addition to request_id.
_FIELDS = ("route", "method", "status", "duration_ms")


class _Text(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)-7s {process}: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line without a traceback."""
        found = _request_id(record)
        return super().formatMessage(record) + ("" if found is None else f" [{found}]")


class _Json(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "message": record.getMessage(),
        }
        if (found := _request_id(record)) is not None:
            line["request_id"] = found
        line.update({name: getattr(record, name) for name in _FIELDS if hasattr(record, name)})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        # Escape non-ASCII characters here if standard error would escape them in a way that is not JSON.
        return json.dumps(line, ensure_ascii=sys.stderr.encoding.lower() != "utf-8")


def _request_id(record: logging.LogRecord) -> str | None:
    return getattr(record, "request_id", None) or request_id.get()


def configure_logging(level: LogLevel, process: str, log_format: LogFormat = "auto") -> None:
    """Log from ``level`` up. Other libraries only log from warning up, and uvicorn from error up, because
    what clients send could fill the log."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Text(process) if _chosen(log_format) == "text" else _Json(process))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("app", "models", "__main__"):
        logging.getLogger(name).setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel(logging.ERROR)


def _chosen(log_format: LogFormat) -> Literal["text", "json"]:
    if log_format == "auto":
        return "text" if sys.stderr.isatty() else "json"
    return log_format
