"""Metrics of several processes on one page."""

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from app.telemetry import metrics

_WRITE = """
import sys
from app.telemetry import metrics

images, seconds, waiting = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
metrics.IMAGES.labels("answered").inc(images)
metrics.PHASE_SECONDS.labels("decode").observe(seconds)
metrics.DEVICE_MEMORY.labels(sys.argv[4]).set(waiting)
"""
_READ = """
from app.telemetry import metrics
page, content_type = metrics.exposition()
print(content_type)
print(page.decode(), end="")
"""


def in_slot(folder: Path, slot: str, program: str, *arguments: object) -> str:
    """Run a program as the process of a slot; gives back what it printed."""
    environment = {**os.environ, metrics.FOLDER_VARIABLE: str(folder), metrics.SLOT_VARIABLE: slot}
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


def page(folder: Path) -> dict[str, float]:
    """What any HTTP process answers for all: each sample's value."""
    content_type, _, text = in_slot(folder, "http-9", _READ).partition("\n")
    assert content_type.startswith("text/plain; version=")
    return {
        sample.name
        + "".join(f" {label}={value}" for label, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_page_sums_counters_and_histograms_of_all_processes(tmp_path: Path) -> None:
    """Any HTTP process answers for all, by sum; of gauges, each worker's own."""
    in_slot(tmp_path, "http-0", _WRITE, 3, 0.02, 5, "cpu:0")
    in_slot(tmp_path, "http-1", _WRITE, 4, 0.2, 7, "cuda:1")
    samples = page(tmp_path)
    assert samples["trimvit_images_total outcome=answered"] == 7
    assert samples["trimvit_phase_seconds_count phase=decode"] == 2
    assert samples["trimvit_phase_seconds_sum phase=decode"] == 0.22
    assert samples["trimvit_phase_seconds_bucket le=0.025 phase=decode"] == 1
    assert samples["trimvit_phase_seconds_bucket le=0.25 phase=decode"] == 2
    assert samples["trimvit_device_memory_bytes worker=cpu:0"] == 5
    assert samples["trimvit_device_memory_bytes worker=cuda:1"] == 7


def test_a_restarted_process_continues_its_counters_in_the_same_files(tmp_path: Path) -> None:
    """Counters never fall, gauges are the successor's, and files do not grow in number."""
    in_slot(tmp_path, "worker-0", _WRITE, 3, 0.02, 5, "cpu:0")
    files = sorted(path.name for path in tmp_path.iterdir())
    in_slot(tmp_path, "worker-0", _WRITE, 2, 0.02, 1, "cpu:0")
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert all("worker-0" in name for name in files)
    samples = page(tmp_path)
    assert samples["trimvit_images_total outcome=answered"] == 5
    assert samples["trimvit_device_memory_bytes worker=cpu:0"] == 1


def test_reading_the_page_does_not_write_what_was_never_counted(tmp_path: Path) -> None:
    """A page that is read often stays as it is."""
    in_slot(tmp_path, "http-0", _WRITE, 3, 0.02, 5, "cpu:0")
    assert page(tmp_path) == page(tmp_path)


def test_without_a_folder_the_page_is_this_processs_own() -> None:
    """A single process (a test, a notebook) needs no folder."""
    metrics.RESTARTS.labels("worker-7").inc(3)
    text, content_type = metrics.exposition()
    assert b'trimvit_restarts_total{process="worker-7"} 3.0' in text
    assert content_type.startswith("text/plain; version=")


def test_every_metric_is_ours_described_and_named_once() -> None:
    """Prefix, help text, no unit but base units, and no label that grows with requests."""
    seen = set()
    for value in vars(metrics).values():
        if not hasattr(value, "_labelnames"):
            continue
        assert value._name.startswith("trimvit_")
        assert value._name not in seen
        seen.add(value._name)
        assert value._documentation.endswith(".")
        assert not value._name.endswith(("_ms", "_milliseconds", "_mb"))
        assert set(value._labelnames) <= {
            "route",
            "method",
            "status",
            "phase",
            "outcome",
            "reason",
            "cause",
            "form",
            "ratio_bucket",
            "worker",
            "process",
            "task",
            "model",
            "images",
        }
    assert len(seen) > 15
