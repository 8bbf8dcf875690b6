"""docs/walkthrough.md, its commands run in their order and as they stand.

They run in a folder of links to the repository, so that its own stays clean. Only the two addresses are
replaced, since their ports may be taken. `.venv` is the environment of the tests, said to be installed.
"""

import base64
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.server import end
from tests.deploy.promql import dashboard_queries
from tests.system.prometheus import Prometheus, needs_prometheus
from tests.system.server import wait_until

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/walkthrough.md").read_text()
STARTS_A_SERVER = ("make serve", ".venv/bin/trimvit serve", "prometheus ")
NOT_RUN_HERE = {
    "docker compose up": "what the containers do is tested in tests/deploy",
    "pip install": "it would change the environment that the tests run in",
}

pytestmark = pytest.mark.skipif(
    shutil.which("curl") is None or shutil.which("make") is None, reason="curl or make is not installed"
)


def steps() -> dict[int, list[str]]:
    """The blocks of commands, by the number of their section."""
    found = {}
    for section in TEXT.split("\n## ")[1:]:
        blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
        found[int(section[0])] = [block for block in blocks if not any(map(block.__contains__, NOT_RUN_HERE))]
    return found


class Walk:
    """A stranger's folder and terminals."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for entry in ROOT.iterdir():
            if entry.name not in (".git", ".venv", "walkthrough"):
                (folder / entry.name).symlink_to(entry)
        (folder / "walkthrough").mkdir()  # as step 1 does, for a later one that is tested alone
        (folder / ".venv").mkdir()
        for entry in Path(sys.prefix).iterdir():
            if not entry.name.startswith(".installed"):
                (folder / ".venv" / entry.name).symlink_to(entry)
        (folder / ".venv" / ".installed").touch()
        self._ports = {"127.0.0.1:8000": free_address(), "127.0.0.1:9091": free_address()}
        self.url, self.prometheus = (f"http://{address}" for address in self._ports.values())
        self._environment = {**os.environ, "TRIMVIT_PORT": self.url.rpartition(":")[2]}

    def run(self, block: str) -> str:
        """Run a block to its end; what it writes."""
        done = subprocess.run(
            self._command(block), cwd=self.folder, env=self._environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def running(self, block: str) -> Iterator[None]:
        """A block whose last command goes on until Ctrl-C."""
        log = self.folder / f"{block.split()[0]}.log".replace("/", "-")
        with log.open("wb") as sink:
            terminal = subprocess.Popen(
                self._command(block),
                cwd=self.folder,
                env=self._environment,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        probe = f"{self.prometheus}/-/ready" if "prometheus " in block else f"{self.url}/readyz"
        try:
            wait_until(lambda: terminal.poll() is not None or answers(probe), f"{block}{log.read_text()}")
            assert terminal.poll() is None, log.read_text()
            yield
            os.killpg(terminal.pid, signal.SIGINT)
            terminal.wait(60)
            wait_until(lambda: not answers(probe), "the server to be gone")
        finally:
            if terminal.poll() is None:
                os.killpg(terminal.pid, signal.SIGTERM)
                end(terminal)
            sys.stdout.write(log.read_text())  # shown with a failing test

    def json(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text())

    def _command(self, block: str) -> list[str]:
        for written, here in self._ports.items():
            block = block.replace(written, here)
        return ["bash", "-euo", "pipefail", "-c", block]


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    return Walk(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="class")
def bundled(walk: Walk) -> Iterator[None]:
    """Step 1: the server."""
    (serve,) = steps()[1]
    with walk.running(serve):
        yield


def test_every_block_is_run_or_said_not_to_be() -> None:
    """The tests below run what the walk-through has, and what is not run is still in it."""
    assert {number: len(blocks) for number, blocks in steps().items()} == {1: 1, 2: 2, 3: 3, 4: 3, 5: 3, 6: 3}
    assert all(name in TEXT for name in NOT_RUN_HERE)
    servers = [block for blocks in steps().values() for block in blocks if starts_a_server(block)]
    assert len(servers) == 4


def starts_a_server(block: str) -> bool:
    return block.splitlines()[-1].startswith(STARTS_A_SERVER)


def json_documents(text: str) -> list[Any]:
    """JSON documents that stand one behind the other."""
    found, decoder, text = [], json.JSONDecoder(), text.strip()
    while text:
        document, end_of_it = decoder.raw_decode(text)
        found.append(document)
        text = text[end_of_it:].lstrip()
    return found


class TestBundledModel:
    def test_a_photograph_is_classified_with_its_mask(self, walk: Walk, bundled: None) -> None:
        """Step 2: the text's own answer, a picture of the patches that are left, a cascade and a refusal."""
        first, more = steps()[2]
        assert walk.run(first) in TEXT
        with Image.open(walk.folder / "walkthrough/mask.png") as mask:
            pixels = np.asarray(mask.convert("L"))
        assert pixels.std() > 0
        (result,) = walk.json("walkthrough/answer.json")["results"]
        assert base64.b64decode(result["mask"][-1]["png"])[:4] == b"\x89PNG"
        answer, refusal = json_documents(walk.run(more))
        assert answer["results"][0]["runs"] in (1, 2)
        assert refusal["type"].startswith("urn:trimvit:problem:")
        assert refusal["detail"]

    @needs_prometheus
    def test_the_dashboard_has_data(self, walk: Walk, bundled: None, dashboard: dict[str, Any]) -> None:
        """Step 3: after its load, Prometheus answers every query of the dashboard, with the project's own
        configuration."""
        start, load, query = steps()[3]
        # An annotation marks what did not happen here: a restart.
        marks = {annotation["name"] for annotation in dashboard["annotations"]["list"]}
        with walk.running(start):
            prometheus, began = Prometheus(walk.prometheus), time.time()

            def has_data(asked: str) -> bool:
                return any(map(math.isfinite, prometheus.values_since(asked, began)))

            def without_data() -> list[str]:
                return [
                    f"{where}: {asked}"
                    for where, asked, _ in dashboard_queries(dashboard)
                    if where not in marks and not has_data(asked)
                ]

            walk.run(load)
            try:
                wait_until(lambda: not without_data(), "every panel to have data", within_s=60)
            except pytest.fail.Exception:
                pytest.fail("no data for:\n" + "\n".join(without_data()))
            (answer,) = json.loads(walk.run(query))["data"]["result"]
            assert 0 < float(answer["value"][1]) < 1


@pytest.fixture(scope="module")
def own_weights(walk: Walk) -> None:
    """Step 4: the file."""
    walk.run(steps()[4][0])


def test_a_file_of_weights_is_served(walk: Walk, own_weights: None) -> None:
    """Step 4: a timm model from a file answers, pruned."""
    _, serve, ask = steps()[4]
    with walk.running(serve):
        (result,) = json.loads(walk.run(ask))["results"]
    assert result["patches"]["per_stage"] == [98, 49, 25]


@pytest.mark.long
def test_it_is_fine_tuned_and_what_came_of_it_is_served(walk: Walk, own_weights: None) -> None:
    """Steps 5 and 6: it learns the four photographs, at the ratios that are evaluated and swept, and the
    server names one."""
    cut, train, evaluate = steps()[5]
    walk.run(cut)
    assert "the model is walkthrough/run/model.safetensors" in walk.run(train)
    table = walk.run(evaluate)
    assert re.search(r"^\| 0\.5 +\| variance", table, re.MULTILINE), table
    serve, ask, sweep = steps()[6]
    with walk.running(serve):
        (result,) = json.loads(walk.run(ask))["results"]
    assert (result["labels"][0]["label"], result["keep_ratio"]) == ("chelsea", 0.5)
    assert "random" in walk.run(sweep)
    assert list((walk.folder / "walkthrough/sweep").glob("*.png"))
