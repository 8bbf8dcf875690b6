"""The curl commands of README and docs/api.md, run as they stand."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.system.server import Server

ROOT = Path(__file__).parents[2]
COMMANDS = [
    command
    for page in ("README.md", "docs/api.md")
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    for command in re.split(r"(?<![\\|])\n", block)  # a line may go on in the next
    if "curl" in command
]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_curl_command_works(server: Server, command: str, tmp_path: Path) -> None:
    """Each curl command is answered with results by the bundled model, or writes its answer into a file."""
    assert "http://127.0.0.1:8000" in command
    here = command.replace("http://127.0.0.1:8000", server.url)
    written = tmp_path / "answer"
    here, to_a_file = re.subn(r"-o \S+", f"--fail -o {written}", here)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", here], cwd=ROOT, capture_output=True, check=True, timeout=60
    )
    if to_a_file:
        assert written.stat().st_size == 4 * 384  # float32 of the bundled model's features
        return
    result = json.loads(done.stdout)["results"][0]
    assert result.get("labels") or len(result["embedding"]) == 384


def test_there_are_commands_to_run() -> None:
    """They show a raw body, a form and JSON."""
    text = "\n".join(COMMANDS)
    assert "--data-binary" in text
    assert "-F image=" in text
    assert "application/json" in text
