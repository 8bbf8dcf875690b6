"""Training with little shared memory, on a full disk, interrupted, and with a reader killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import timm
import torch
from PIL import Image

pytestmark = pytest.mark.system

Start = Callable[..., "subprocess.Popen[str]"]

# A whole batch of this size has 3 MB of pixels.
ARCHITECTURE, SIZE, BATCH = "test_vit3", 256, 16


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of sixteen pictures each."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for name in ("amber", "blue"):
        (folder / name).mkdir()
        for number in range(16):
            pixels = draw.integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def start(pictures: Path, tmp_path: Path) -> Iterator[Start]:
    """Start `trimvit train` on them, for ever unless told otherwise."""
    torch.manual_seed(0)
    torch.save(timm.create_model(ARCHITECTURE).state_dict(), tmp_path / "start.pth")
    started: list[subprocess.Popen[str]] = []

    def run(*flags: str, before: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
        command = [*before, sys.executable, "-m", "app.cli", "train"]
        command += [
            "--data",
            str(pictures),
            "--output",
            str(tmp_path / "run"),
            "--architecture",
            ARCHITECTURE,
        ]
        command += ["--weights", str(tmp_path / "start.pth"), "--image-size", str(SIZE), "--no-bf16"]
        command += ["--batch-size", str(BATCH), "--save-every", "1", *flags]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for_a_state(folder: Path, process: "subprocess.Popen[str]") -> None:
    while not (folder / "run" / "resume.pt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def small_shared_memory() -> tuple[str, ...]:
    """What runs a command with one megabyte of shared memory. Skips where the system does not let us."""
    inside = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh")
    try:
        subprocess.run([*inside, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a private mount of /dev/shm is not allowed here")
    return inside


def test_training_needs_no_shared_memory(start: Start, tmp_path: Path) -> None:
    """A batch is larger than all there is, and two processes read."""
    process = start("--epochs", "2", "--workers", "2", before=small_shared_memory())
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out.startswith("4 steps in ")


def test_an_interrupted_training_says_how_to_go_on(start: Start, tmp_path: Path) -> None:
    """Ctrl-C, which the reading processes get, too, is one line; the same command goes on."""
    # What a shell starts in the background ignores SIGINT, and these tests may be such a thing.
    heeding = ("env", "--default-signal=INT")
    process = start("--epochs", "5000", "--workers", "2", before=heeding)
    wait_for_a_state(tmp_path, process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.strip() == f"interrupted; run the same command again to resume from {tmp_path}/run"
    steps = len((tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines())
    process = start("--epochs", "5000", "--workers", "0")
    while len((tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()) <= steps:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_a_killed_reader_is_one_line(start: Start, tmp_path: Path) -> None:
    """Not a trace: the system may have needed its memory."""
    process = start("--epochs", "5000", "--workers", "1")
    wait_for_a_state(tmp_path, process)
    (reader,) = psutil.Process(process.pid).children()
    reader.kill()
    _, err = process.communicate()
    assert process.returncode == 1
    (line,) = err.strip().splitlines()
    assert line.startswith("trimvit train: a process that reads images was killed")
    assert "--workers 0" in line


def test_a_full_disk_is_one_line(start: Start, tmp_path: Path) -> None:
    """The output folder keeps nothing half-written."""
    limited = ("sh", "-c", 'ulimit -f 100; exec "$@"', "sh")  # no file above 50 kB
    process = start("--epochs", "1", "--workers", "0", before=limited)
    _, err = process.communicate()
    assert process.returncode == 1
    assert err == f"trimvit train: {tmp_path}/run/resume.pt: File too large\n"
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"log.jsonl"}
