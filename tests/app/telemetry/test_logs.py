"""One log for all processes: text for people, JSON for programs."""

import json
import subprocess
import sys
from typing import Any

_LOG = """
import logging, sys
from app.telemetry.logs import configure_logging, request_id
configure_logging(sys.argv[1], "http 3", sys.argv[2])
for name in ("app.http", "models.load", "PIL", "uvicorn.error"):
    logging.getLogger(name).info("an info of %s", name)
    logging.getLogger(name).warning("a warning of %s", name)
log = logging.getLogger("app")
log.error("of another request", extra={"request_id": "other"})
request_id.set("mine")
log.error('two\\nlines, "quoted"', extra={"route": "/v1/classify", "status": 200, "secret": "never"})
try:
    1 / 0
except ZeroDivisionError:
    log.exception("a fault")
"""


def logged(level: str, form: str = "text") -> list[str]:
    ended = subprocess.run(
        [sys.executable, "-c", _LOG, level, form], check=True, capture_output=True, text=True, timeout=60
    )
    assert ended.stdout == ""
    return ended.stderr.splitlines()


def objects(form: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in logged("info", form)]


def test_lines_have_time_level_process_and_message() -> None:
    """A line says when, how bad, who, and what; on standard error."""
    line = logged("info")[0]
    when, rest = line[:23], line[24:]
    assert when[4] == when[7] == "-"
    assert rest == "INFO    http 3: an info of app.http"


def test_the_level_is_ours_and_other_libraries_are_quiet() -> None:
    """The setting holds for our modules; the others' chatter starts at warning, and uvicorn's, which any
    client can cause, at error."""
    told = [line.partition("http 3: ")[2] for line in logged("info")]
    assert told[:5] == [
        "an info of app.http",
        "a warning of app.http",
        "an info of models.load",
        "a warning of models.load",
        "a warning of PIL",
    ]
    assert logged("error")[0].endswith("http 3: a warning of PIL")


def test_the_id_of_the_request_is_in_every_line_about_it() -> None:
    """Written while it is answered, or naming it."""
    lines = logged("error")
    assert lines[1].endswith("of another request [other]")
    assert lines[3] == 'lines, "quoted" [mine]'
    assert lines[4].endswith("a fault [mine]")
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert [line.get("request_id") for line in objects("json")[-3:]] == ["other", "mine", "mine"]


def test_json_is_one_object_a_line_with_the_fields_that_are_known() -> None:
    """Nothing that a caller happens to pass gets in by accident."""
    *_, quoted, fault = objects("json")
    when = quoted.pop("time")
    assert when[10] == "T"
    assert when[-1] == "Z"
    assert quoted == {
        "level": "error",
        "process": "http 3",
        "message": 'two\nlines, "quoted"',
        "request_id": "mine",
        "route": "/v1/classify",
        "status": 200,
    }
    assert fault["traceback"].endswith("ZeroDivisionError: division by zero")


def test_without_a_terminal_the_log_is_json() -> None:
    """As a container's is."""
    assert objects("auto")[0]["message"] == "an info of app.http"
