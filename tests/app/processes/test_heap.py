"""Freed memory goes back to the system, also from between what stays."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# Half of 60 MB is freed, every other block. The rest of the time the process works or sleeps, as it is told.
PROGRAM = """
import sys, time
from app.processes.heap import give_back_freed_memory

def resident() -> int:
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def wait() -> None:
    if "busy" in sys.argv:
        sum(range(10**6))
    else:
        time.sleep(0.02)

blocks = [b"x" * 100_000 for _ in range(600)]
before = resident()
del blocks[::2]
if "asked" in sys.argv:
    give_back_freed_memory(every_s=0.1)
until = time.monotonic() + (20 if "busy" in sys.argv and "asked" in sys.argv else 1.5)
while resident() > before - 20_000_000 and time.monotonic() < until:
    wait()
print(before - resident())
"""


def given_back(*words: str) -> int:
    """Bytes that a process of its own had less after it freed 30 MB."""
    command = [sys.executable, "-c", PROGRAM, *words]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc gives back what it likes")
def test_a_process_that_works_keeps_no_freed_memory() -> None:
    """Most of it is back, where malloc by itself keeps it between what stays."""
    assert given_back("busy", "asked") > 20_000_000
    assert given_back("busy") < 10_000_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc gives back what it likes")
def test_a_process_that_does_nothing_is_left_alone() -> None:
    """It has freed nothing since, and is not woken for long."""
    assert given_back("asked") < 10_000_000


# 8 MB in pieces are freed and taken again, as an image after the other does in a decoder.
IMAGES = """
import resource, sys
from app.processes.heap import keep_memory_of_usual_images

def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def image() -> None:
    [bytes([1]) * 100_000 for _ in range(80)]

if "asked" in sys.argv:
    keep_memory_of_usual_images()
image()
before = faults()
for _ in range(10):
    image()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc keeps what it likes")
def test_the_next_image_has_the_memory_of_the_last() -> None:
    """Its pages need not come anew from the system, as they do by default."""

    def faults(*words: str) -> int:
        command = [sys.executable, "-c", IMAGES, *words]
        # Malloc as it is by default, whatever a server in this process has set for its workers.
        own = {
            name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))
        }
        run = subprocess.run(
            command, cwd=ROOT, env=own, capture_output=True, text=True, check=True, timeout=60
        )
        return int(run.stdout)

    assert faults("asked") < 1000 < 10_000 < faults()
