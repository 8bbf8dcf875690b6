"""Starting where people start servers: odd environments, and told to stop before anything is ready."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.system.photographs import SHIPPED
from tests.system.server import TRIMVIT, running_server, wait_until
from tests.system.small_network import save_small_network

ROOT = Path(__file__).parents[2]
LABELS = ("Tür", "Öl", "Maß")


def test_a_server_starts_in_an_odd_environment_and_speaks_utf_8(tmp_path: Path) -> None:
    """No locale, no home, a temporary folder whose path is too long, a Service called trimvit, a misspelt
    variable: it answers, and its log says what it passed over."""
    save_small_network(tmp_path / "small.safetensors")
    (tmp_path / "grüße.txt").write_text("\n".join(LABELS), encoding="utf-8")
    long = tmp_path / ("x" * 110)
    long.mkdir()
    # PYTHONPATH comes first, and a server that is started from the checkout changes it: a process would look
    # there for the memory of its title.
    kept = {"PYTHONPATH": f".:{os.environ.get('PYTHONPATH', '')}"} | {
        name: value for name, value in os.environ.items() if name not in ("HOME", "LANG", "PYTHONPATH")
    }
    environment = (
        "env", "-i", *(f"{name}={value}" for name, value in kept.items()),
        "LC_ALL=POSIX", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0",
        "TRIMVIT_PORT=tcp://10.96.12.34:80", "TRIMVIT_DEFUALT_KEEP_RATIO=0.5", f"TMPDIR={long}",
    )  # fmt: skip
    flags = ("--model", str(tmp_path / "small.safetensors"), "--labels", str(tmp_path / "grüße.txt"))
    program = (*environment, sys.executable, "-m", "app.cli")
    with running_server(tmp_path, *flags, "--host", "localhost", program=program, started_in=ROOT) as server:
        answer = httpx.post(f"{server.url}/v1/classify", content=(SHIPPED / "china.jpg").read_bytes())
        (result,) = answer.json()["results"]
        assert {label["label"] for label in result["labels"]} == set(LABELS)
        log = [json.loads(line)["message"] for line in server.log.read_text(encoding="utf-8").splitlines()]
        assert any(message.startswith("ignored TRIMVIT_PORT: ") for message in log)
        assert any("did you mean TRIMVIT_DEFAULT_KEEP_RATIO?" in message for message in log)
        assert any("too long for a Unix socket" in message for message in log)
        assert psutil.Process(server.supervisor.pid).cmdline()[0].startswith("trimvit: supervisor")
    assert list(long.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=str)
def test_a_server_that_is_told_to_stop_while_it_starts_leaves_no_process(
    tmp_path: Path, number: signal.Signals
) -> None:
    """It ends with 0, although no worker was ready, and however often it is told so after it has stopped."""
    log = tmp_path / "log"
    with log.open("wb") as sink:
        server = subprocess.Popen(
            [sys.executable, TRIMVIT, "serve", "--port", "0"],
            stderr=sink,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # nohup's would stay ignored
        )
    wait_until(lambda: len(psutil.Process(server.pid).children()) >= 2, "the server's processes")
    started = psutil.Process(server.pid).children(recursive=True)
    server.send_signal(number)
    wait_until(lambda: "stopped" in log.read_text(), "the end of its processes")
    while server.poll() is None:
        server.send_signal(number)
        time.sleep(0.01)
    assert server.returncode == 0
    wait_until(lambda: not any(each.is_running() for each in started), "the server's processes to end")
    assert "Traceback" not in log.read_text()
