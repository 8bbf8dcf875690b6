"""One log format for all processes."""

import subprocess
import sys

_LOG = """
import logging, sys
from app.logs import configure_logging
configure_logging(sys.argv[1], "http 3")
for name in ("app.http", "models.zoo", "uvicorn.error"):
    logging.getLogger(name).info("an info of %s", name)
    logging.getLogger(name).warning("a warning of %s", name)
"""


def logged(level: str) -> list[str]:
    ended = subprocess.run(
        [sys.executable, "-c", _LOG, level], check=True, capture_output=True, text=True, timeout=60
    )
    assert ended.stdout == ""
    return ended.stderr.splitlines()


def test_lines_have_time_level_process_and_message() -> None:
    """A line says when, how bad, who, and what; on standard error."""
    line = logged("info")[0]
    when, rest = line[:23], line[24:]
    assert when[4] == when[7] == "-"
    assert rest == "INFO    http 3: an info of app.http"


def test_the_level_is_ours_and_other_libraries_are_quiet() -> None:
    """The setting holds for our modules; the others' chatter starts at warning."""
    told = [line.partition("http 3: ")[2] for line in logged("info")]
    assert told == [
        "an info of app.http",
        "a warning of app.http",
        "an info of models.zoo",
        "a warning of models.zoo",
        "a warning of uvicorn.error",
    ]
    assert [line.partition("http 3: ")[2] for line in logged("error")] == ["a warning of uvicorn.error"]
