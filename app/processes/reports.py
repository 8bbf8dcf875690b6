"""The supervisor's reports about its workers to the front ends: a small file in their private folder.

Running workers report for themselves. This is for those that fail to start.
"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

MOST_REASON_CHARACTERS = 500


class WorkerReport(msgspec.Struct, frozen=True):
    """The failed starts of one worker in a row. ``reason``: why the last one failed. ``next_try``: the time
    of the next one, in the system's monotonic clock. ``given_up``: whether starts are slow now."""

    name: str
    failed_starts: int = 0
    reason: str = ""
    next_try: float = 0.0
    given_up: bool = False


_decoder = msgspec.json.Decoder(tuple[WorkerReport, ...])


def write_reports(path: Path, reports: Sequence[WorkerReport]) -> None:
    """Replace the file atomically."""
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(reports))
    new.replace(path)


def read_reports(path: Path) -> tuple[WorkerReport, ...]:
    """The reports of the workers. Empty before the supervisor has written any."""
    try:
        return _decoder.decode(path.read_bytes())
    except FileNotFoundError:
        return ()


def trouble(reports: Sequence[WorkerReport]) -> tuple[str, float] | None:
    """If every worker has been given up: the reason, and the seconds until the next try."""
    if not reports or not all(report.given_up for report in reports):
        return None
    soonest = min(reports, key=lambda report: report.next_try)
    wait_s = max(1.0, soonest.next_try - time.monotonic())
    return (
        f"{soonest.name} failed to start {soonest.failed_starts} times in a row, the last time with: "
        f"{soonest.reason}; next attempt in {wait_s:.0f} s",
        wait_s,
    )


def tell_reason(path: Path, error: BaseException) -> None:
    """Write for the supervisor, in one line, why this process cannot continue. If it cannot be written, only
    the log has it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    with contextlib.suppress(OSError):
        path.write_text(text[:MOST_REASON_CHARACTERS], encoding="utf-8", errors="backslashreplace")


def take_reason(path: Path) -> str | None:
    """Read and delete the reason that a process left. None if it left none that can be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        path.unlink()
    except OSError:
        return None
    return text or None
