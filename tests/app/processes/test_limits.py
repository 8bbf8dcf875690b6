"""The system's limits, looked at before the server's processes are started."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CODE = """
import resource
from app.processes.limits import TooLow, raise_limits
try:
    raise_limits()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    print("raised" if soft == min(hard, 2**20) else soft)
except TooLow as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("ulimit -n 64", "the limit of open files is 64, but a server needs 256"),
        ("ulimit -v 2000000", "the limit of address space is 1953 MiB"),
        ("ulimit -S -n 300", "raised"),
        ("true", "raised"),
    ],
)
def test_what_is_too_low_is_told_and_the_rest_is_raised(command: str, words: str) -> None:
    """With the command that raises it; else each start would fail in a way of its own."""
    done = subprocess.run(
        ["bash", "-c", f'{command}; exec {sys.executable} -c "$0"', CODE],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert words in done.stdout, done.stderr
