"""Memory through many batches: what one batch needed is given back after it."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


# Ten seconds of two cores; minutes where others have them.
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="resident memory is read from Linux's /proc"
)
def test_memory_does_not_grow(tmp_path: Path) -> None:
    """Around batch 1,400 a process of two streams is no larger than around batch 400, but for 5 MiB.

    That is 5 KiB a batch, half of its logits. oneDNN's memory of shapes is kept small: it grows by design,
    to a limit. A process of its own, so that nothing else comes and goes in it.
    """
    output = tmp_path / "memory.json"
    command = [sys.executable, "-m", "benchmarks.engine", "memory", "--output", str(output)]
    options = ["--batches", "1500", "--warm-up", "300", "--every", "50", "--most-images", "4"]
    subprocess.run(
        [*command, *options, "--dtype", "float32", "--streams", "2"],
        cwd=ROOT,
        env={**os.environ, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"},
        check=True,
        capture_output=True,
    )
    (row,) = json.loads(output.read_text())["results"]
    samples = dict(row["samples"])
    early = statistics.median(mib for batches, mib in samples.items() if 300 < batches <= 500)
    late = statistics.median(mib for batches, mib in samples.items() if 1300 < batches <= 1500)
    assert late - early < 5, samples
