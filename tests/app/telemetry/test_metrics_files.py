"""Metrics files have their room from the start."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from app.telemetry.metrics_files import reserve

_WRITES = """
from app.telemetry import metrics
for metric in vars(metrics).values():
    if hasattr(metric, "_labelnames"):
        for number in range(12):
            labels = [f"a label of some length {number}"] * len(metric._labelnames)
            child = metric.labels(*labels) if labels else metric
            tell = next(getattr(child, way) for way in ("observe", "set", "inc") if hasattr(child, way))
            tell(1.5)
print(metrics.exposition()[0].decode())
"""


def room(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_blocks for path in folder.iterdir()}


def test_a_process_that_counts_needs_no_more_room_than_it_has(tmp_path: Path) -> None:
    """With more labels than a server has: no file and no page is added, so that a full disk kills nobody."""
    reserve(tmp_path, ["http-0"])
    before = room(tmp_path)
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "TRIMVIT_METRICS_SLOT": "http-0"}
    ended = subprocess.run(
        [sys.executable, "-c", _WRITES], capture_output=True, text=True, env=environment, check=False
    )
    assert "trimvit_batches_total" in ended.stdout, ended.stderr
    assert room(tmp_path) == before


def test_a_disk_without_room_is_told(tmp_path: Path) -> None:
    """At the start, and not by a signal later."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            reserve(tmp_path, ["http-0"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
