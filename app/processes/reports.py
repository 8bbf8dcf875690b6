"""What the supervisor tells the front ends of its workers: a small file in their private folder.

Workers speak for themselves while they live. This is for those that do not come up.
"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

MOST_REASON_CHARACTERS = 500


class WorkerReport(msgspec.Struct, frozen=True):
    """One worker's failed starts in a row. ``reason``: why the last one failed; ``next_try``: when the next
    one is made, by the system's monotonic clock, which nobody sets; ``given_up``: whether starts are made
    slowly now."""

    name: str
    failed_starts: int = 0
    reason: str = ""
    next_try: float = 0.0
    given_up: bool = False


_decoder = msgspec.json.Decoder(tuple[WorkerReport, ...])


def write_reports(path: Path, reports: Sequence[WorkerReport]) -> None:
    """Replace the file at once, so that nobody reads half of it."""
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(reports))
    new.replace(path)


def read_reports(path: Path) -> tuple[WorkerReport, ...]:
    """The workers' reports; none before the supervisor has written any."""
    try:
        return _decoder.decode(path.read_bytes())
    except FileNotFoundError:
        return ()


def trouble(reports: Sequence[WorkerReport]) -> tuple[str, float] | None:
    """If every worker has been given up: why, in words, and the seconds until one is tried again."""
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
    """Leave word for the supervisor, in one line, of why this process cannot go on; if that cannot be
    written, the log alone has it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    with contextlib.suppress(OSError):
        path.write_text(text[:MOST_REASON_CHARACTERS], encoding="utf-8", errors="backslashreplace")


def take_reason(path: Path) -> str | None:
    """The word that a process left, which is taken away; None if it left none that can be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        path.unlink()
    except OSError:
        return None
    return text or None
