"""Children end with their supervisor, and only with it."""

import subprocess
import sys

import psutil
import pytest

from app.processes.parent_death import SUPERVISOR_VARIABLE
from tests.system.server import wait_until

CHILD = (
    "from app.processes.parent_death import die_with_parent; die_with_parent(); "
    "print('alive', flush=True); input()"
)
PARENT = f"""
import os, subprocess, sys, time
os.environ["{SUPERVISOR_VARIABLE}"] = str(os.getpid())
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(child.stdout.readline().decode().strip(), child.pid, flush=True)
if sys.argv[1] == "stay":
    time.sleep(600)
"""


def test_a_child_is_killed_with_its_supervisor() -> None:
    """kill -9 of the parent ends the child."""
    with subprocess.Popen([sys.executable, "-c", PARENT, "stay"], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        word, pid = parent.stdout.readline().decode().split()
        assert word == "alive"
        child = psutil.Process(int(pid))
        parent.kill()
        wait_until(
            lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child's end"
        )


def test_a_supervisor_may_be_process_1() -> None:
    """In a container the supervisor may be PID 1; its children live all the same."""
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", PARENT, "leave"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if b"Operation not permitted" in done.stderr:
        pytest.skip("a PID namespace may not be made here")
    assert done.stdout.startswith(b"alive"), done.stderr
