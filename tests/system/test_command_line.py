"""The commands and the Python client beside a real server with the bundled model."""

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import httpx
import numpy as np
import pytest
from PIL import Image
from trimvit_client import AsyncClient, Client, InvalidValue, Options

from app.cli import main
from tests.system.server import TRIMVIT, Server
from tests.system.tolerance import SCORE_TOLERANCE

ROOT = Path(__file__).parents[2]
PHOTOGRAPHS = sorted((ROOT / "tests" / "photographs").glob("*.jpg"))
PAGE = (ROOT / "docs/command-line.md").read_text()
COMMANDS = re.findall(r"^\.venv/bin/trimvit ((?:classify|models|bench) .*)$", PAGE, re.MULTILINE)
SNIPPETS = [
    snippet
    for snippet in re.findall(r"```python\n(.*?)```", (ROOT / "docs/clients.md").read_text(), re.DOTALL)
    if "trimvit_client" in snippet  # of the others: see test_clients.py
]
CLIENTS_SNIPPETS = re.findall(
    r"```python\n(.*?)```", (ROOT / "clients" / "python" / "README.md").read_text(), re.DOTALL
)
# This checkout's code, wherever the environment was installed from.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def trimvit(*arguments: str, at: Path = ROOT) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, TRIMVIT, *arguments]
    return subprocess.run(command, cwd=at, env=ENVIRONMENT, capture_output=True, check=False, timeout=240)


def test_classify_says_what_the_server_says(server: Server, tmp_path: Path) -> None:
    """The same labels, patches and costs for the same photographs and options."""
    options = {"keep_ratio": "0.5", "criterion": "mad", "top_k": "3"}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    done = trimvit("classify", *map(str, PHOTOGRAPHS), *flags, "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["photograph"] for line in lines] == [str(path) for path in PHOTOGRAPHS]
    for path, line in zip(PHOTOGRAPHS, lines, strict=True):
        answer = httpx.post(f"{server.url}/v1/classify", params=options, content=path.read_bytes()).json()
        (theirs,) = answer["results"]
        assert line["model"] == answer["model"]
        assert line["labels"][0]["label"] == theirs["labels"][0]["label"]
        assert line["labels"][0]["score"] == pytest.approx(theirs["labels"][0]["score"], abs=SCORE_TOLERANCE)
        for name in ("keep_ratio", "criterion", "reducer", "patches", "compute", "runs"):
            assert line[name] == theirs[name]


def test_an_image_comes_from_a_pipe_and_its_mask_goes_to_a_file(tmp_path: Path) -> None:
    """What the shell gives."""
    command = f"cat {PHOTOGRAPHS[0]} | {sys.executable} {TRIMVIT} classify - --keep-ratio 0.3 --mask mask.png"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=True, timeout=240
    )
    assert b"patches kept" in done.stdout
    assert Image.open(tmp_path / "mask.png").size == (224, 224)


def test_a_reader_that_has_read_enough_is_no_fault_of_ours(tmp_path: Path) -> None:
    """`| head` ends the command without a trace."""
    command = f"{sys.executable} {TRIMVIT} models --json --keep-ratios 1 'deit*' | head -c 10"
    done = subprocess.run(
        ["bash", "-c", command], env=ENVIRONMENT, capture_output=True, check=True, timeout=240
    )
    assert done.stdout == b'{"model": '
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_works(
    server: Server,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As it stands, but for the server's address and the files that it writes. In this process, which has
    imported torch."""
    here = command.replace("http://127.0.0.1:8000", server.url)
    arguments = [str(ROOT / each) if each.startswith("tests/") else each for each in shlex.split(here)]
    if arguments[0] == "bench":
        arguments += ["--duration-s", "2", "--warmup-s", "0.2"]
    monkeypatch.chdir(tmp_path)
    with patch.dict(os.environ, ENVIRONMENT), pytest.raises(SystemExit) as end:
        main(arguments)
    told = capfd.readouterr()
    assert end.value.code == 0, told.err
    assert told.out


def test_there_are_commands_and_snippets_to_run() -> None:
    """The documentation shows all three commands and the client."""
    assert {command.split()[0] for command in COMMANDS} == {"classify", "models", "bench"}
    assert SNIPPETS
    assert CLIENTS_SNIPPETS


@pytest.mark.parametrize("snippet", SNIPPETS + CLIENTS_SNIPPETS)
def test_a_python_snippet_works(server: Server, snippet: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, but for the server's address; at the root of the repository."""
    monkeypatch.chdir(ROOT)
    exec(compile(snippet.replace("http://127.0.0.1:8000", server.url), "snippet", "exec"), {})


def test_the_client_labels_photographs(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Sync and async, one and many, with masks of both kinds, and refusals in the server's words."""
    with Client(server.url) as client:
        assert client.is_ready()
        (model,) = client.models()
        assert "church" in model.labels
        one = client.classify(ROOT / "tests/photographs/china.jpg", Options(keep_ratio=0.5, mask="grid"))
        assert (one.best.label, one.patches.kept) == ("church", 32)
        cells = one.mask[0].array()
        assert (cells.shape, int(cells.sum())) == ((16, 16), 32)
        whole = np.asarray(client.classify(PHOTOGRAPHS[0], Options(mask="png")).mask[0].picture())
        # What the model saw is itself an image that it sees the same way.
        seen = client.classify(whole, Options(keep_ratio=0.5, mask="png"), deadline_s=60)
        assert seen.mask[0].picture().size == (224, 224)
        many = list(client.classify_many(PHOTOGRAPHS * 3, Options(keep_ratio=0.5), concurrency=4))
        with pytest.raises(
            InvalidValue, match=r"keep_ratio must be a number above 0 and at most 1.*; got '2"
        ):
            client.classify(PHOTOGRAPHS[0], Options(keep_ratio=2))

    async def ask() -> list[str]:
        async with AsyncClient(server.url) as client:
            answers = client.classify_many(PHOTOGRAPHS * 3, Options(keep_ratio=0.5), concurrency=4)
            return [answer.best.label async for answer in answers]

    assert asyncio.run(ask()) == [answer.best.label for answer in many]


def test_bench_needs_no_torch(server: Server) -> None:
    """Nor loads it: any machine can be the one that loads."""
    code = """
import sys
from app.cli import main
try:
    main(["bench", sys.argv[1], "--duration-s", "1", "--warmup-s", "0", "--rate", "5", "--json"])
except SystemExit as end:
    assert end.code == 0, end.code
assert not {"torch", "timm", "torchvision"} & sys.modules.keys()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, server.url],
        env=ENVIRONMENT,
        capture_output=True,
        check=True,
        timeout=120,
    )
    assert json.loads(done.stdout)["answered"] > 0
