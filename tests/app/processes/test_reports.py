"""What the supervisor tells the front ends."""

import time
from pathlib import Path

from app.processes.reports import (
    MOST_REASON_CHARACTERS,
    WorkerReport,
    read_reports,
    take_reason,
    tell_reason,
    trouble,
    write_reports,
)

WELL = WorkerReport("worker-0")
LOST = WorkerReport("worker-1", 5, "OSError: no disk", time.monotonic() + 40, given_up=True)


def test_reports_come_back_whole(tmp_path: Path) -> None:
    """Written, replaced, read; before the first there are none."""
    path = tmp_path / "workers.json"
    assert read_reports(path) == ()
    for reports in ((WELL, LOST), (WELL,)):
        write_reports(path, reports)
        assert read_reports(path) == reports
    assert [file.name for file in tmp_path.iterdir()] == ["workers.json"]


def test_only_where_every_worker_is_given_up_none_is_to_be_expected() -> None:
    """One that may come up is worth waiting for."""
    assert trouble(()) is None
    assert trouble((WELL,)) is None
    assert trouble((WELL, LOST)) is None
    found = trouble((LOST, WorkerReport("worker-2", 6, "x", time.monotonic() + 90, given_up=True)))
    assert found is not None
    text, wait_s = found
    assert text.startswith("worker-1 failed to start 5 times in a row, the last time with: OSError: no disk;")
    assert 1 <= wait_s <= 40


def test_a_time_that_has_passed_is_told_as_soon() -> None:
    """Retry-After is never negative."""
    found = trouble((WorkerReport("worker-0", 5, "x", time.monotonic() - 100, given_up=True),))
    assert found is not None
    assert found[1] == 1.0


def test_a_reason_is_one_short_line_and_is_taken_once(tmp_path: Path) -> None:
    """A traceback's worth of text does not travel."""
    path = tmp_path / "reason"
    assert take_reason(path) is None
    tell_reason(path, RuntimeError("first line\n  second line" + "x" * 10_000))
    reason = take_reason(path)
    assert reason is not None
    assert reason.startswith("RuntimeError: first line second linexxx")
    assert len(reason) == MOST_REASON_CHARACTERS
    assert take_reason(path) is None
