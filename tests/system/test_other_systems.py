"""Windows and macOS: commands without a server work there. Here, on Linux, what those systems lack is taken
away from Python after third-party packages, which are made for them, have been imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.photographs import SHIPPED
from tests.system.small_network import LABELS, save_small_network

ROOT = Path(__file__).parents[2]
AS_ON_ANOTHER_SYSTEM = """
import asyncio, concurrent.futures, multiprocessing, os, signal, socket, subprocess, sys, tempfile
import fastapi, filelock, httpx, huggingface_hub.utils._cache_manager, msgspec
import numpy, PIL.Image, prometheus_client, pydantic_settings, safetensors.torch
import setproctitle, timm.data, torch, torch._dynamo, torch.utils.data, torchvision.transforms, tqdm, uvicorn

assert not [name for name in sys.modules if name.split(".")[0] in ("app", "models")]
platform, checkpoint, photograph = sys.argv[1:]
sys.platform = platform
gone = {os: ["posix_fallocate", "sched_getaffinity"], socket: [], signal: []}
if platform == "win32":
    for name in ("fcntl", "grp", "pwd", "resource", "termios"):
        sys.modules[name] = None
    gone[os] += ["fork", "getuid", "geteuid", "posix_spawn", "setsid", "statvfs", "sysconf", "WNOHANG"]
    gone[socket] += ["AF_UNIX"]
    gone[signal] += ["SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGUSR1", "pthread_sigmask"]
for module, names in gone.items():
    for name in names:
        delattr(module, name)

from app.cli import main
from app.command_table import COMMANDS

def run(*arguments):
    try:
        main(arguments)
    except SystemExit as end:
        return end.code

for command in COMMANDS:
    assert run(command, "--help") == 0, command
for command in ("serve", "ray"):
    assert run(command) == 1
assert run("models") == 0
assert run("bench", "http://127.0.0.1:9", "--duration-s", "1") == 1
sys.exit(run("classify", photograph, "--model", checkpoint))
"""


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_commands_without_a_server_work_on_other_systems(platform: str, tmp_path: Path) -> None:
    """And those with one say what it needs, without a traceback."""
    checkpoint = tmp_path / "small.safetensors"
    save_small_network(checkpoint)
    done = subprocess.run(
        [sys.executable, "-c", AS_ON_ANOTHER_SYSTEM, platform, checkpoint, SHIPPED / "china.jpg"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert any(label in done.stdout.splitlines()[-1] for label in LABELS)
    for command in ("serve", "ray"):
        assert (
            f"trimvit {command}: the server needs Linux, but this is {platform}: run it in Docker"
            in done.stderr
        )
    assert f'File "{ROOT}' not in done.stderr  # no traceback through our code
