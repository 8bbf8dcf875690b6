"""What a person sees who starts the server in a terminal."""

import json
import os
import pty
import re
import select
import subprocess
import time

from benchmarks.server import end
from tests.system.server import ENVIRONMENT, READY_WITHIN_S, TRIMVIT


def test_a_terminal_is_told_what_is_served_and_what_to_try() -> None:
    """Once, when the server is ready; the curl line works as it stands."""
    terminal, stderr = pty.openpty()
    command = [TRIMVIT, "serve", "--port", "0", "--http-workers", "2"]
    server = subprocess.Popen(command, stderr=stderr, env={**ENVIRONMENT, **os.environ})
    os.close(stderr)
    try:
        screen = read_until(terminal, "Press Ctrl-C to stop the server.")
        assert "TrimViT is ready." in screen
        assert "trimvit-small-109: 109 labels" in screen
        assert re.search(r"keep ratio 1: a single image [\d.]+ ms, in batches [\d.]+ images/s", screen)
        found = re.search(r"^ *(curl .*)$", screen, re.MULTILINE)
        assert found is not None
        command = found[1].replace("curl ", "curl --silent --fail --max-time 60 ", 1)
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)
        assert json.loads(done.stdout)["results"][0]["labels"][0]["label"] == "church"
        assert screen.count("TrimViT is ready.") == 1, "of two HTTP processes, one tells"
    finally:
        end(server)
        os.close(terminal)


def read_until(terminal: int, words: str) -> str:
    """All that the terminal shows up to these words."""
    seen, until = b"", time.monotonic() + READY_WITHIN_S
    while words.encode() not in seen:
        assert time.monotonic() < until, seen.decode()
        if select.select([terminal], [], [], 1.0)[0]:
            seen += os.read(terminal, 65536)
    return seen.decode().replace("\r\n", "\n")
