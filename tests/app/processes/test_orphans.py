"""The first process of a container waits for processes whose parents have died."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.processes.orphans import reap_orphans

ROOT = Path(__file__).parents[3]
AS_PROCESS_1 = """
import asyncio, os, subprocess, sys
from app.processes.orphans import reap_orphans

def zombies():
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    return sum(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "Z" for pid in pids)

async def main():
    assert os.getpid() == 1
    subprocess.run(["sh", "-c", "sleep 0.1 & exit 0"])  # a child of its own, whose child outlives it
    await asyncio.sleep(0.5)
    assert zombies() == 1
    reaping = asyncio.create_task(reap_orphans(0.1))
    own = await asyncio.create_subprocess_exec("sh", "-c", "exit 7")
    assert await own.wait() == 7
    while zombies():
        await asyncio.sleep(0.05)
    reaping.cancel()
    print("reaped")

asyncio.run(main())
"""


def test_orphans_are_waited_for() -> None:
    """And the process's own children are left to those who started them."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("util-linux's unshare is not installed")
    namespace = [unshare, "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("this user may make no namespaces")
    done = subprocess.run(
        [*namespace, sys.executable, "-c", AS_PROCESS_1], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "reaped\n", done.stderr


def test_any_other_process_leaves_them_to_process_1() -> None:
    """It returns at once."""
    asyncio.run(asyncio.wait_for(reap_orphans(), 5))
