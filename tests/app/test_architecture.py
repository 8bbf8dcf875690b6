"""Who imports whom: the contracts of pyproject.toml, and what a process has loaded in the end."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.processes.programs import FORKABLE, PRELOADED

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "timm", "torchvision")


def loaded_after(statement: str) -> set[str]:
    """The modules that a new Python has loaded after a statement."""
    ended = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys\nprint(*sys.modules)"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return set(ended.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import app.main",
        "import app.processes.supervisor",
        "import app.dispatch.client",
        "import app.dispatch.process",
        "import app.worker.process",
        "import app.command_table as t; t.COMMANDS['serve'].load()",
        "import app.command_table as t; [t.COMMANDS[it].load() for it in ('classify', 'models', 'bench')]",
        "import app.commands.plot",
    ],
)
def test_a_front_end_and_a_supervisor_never_load_torch(statement: str) -> None:
    """They start in a moment and stay small; a worker loads torch when it runs, not when it is imported."""
    loaded = loaded_after(statement)
    assert "app" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux only")
def test_what_workers_share_can_be_forked() -> None:
    """No thread is started by importing it, no GPU is touched, and no metrics file is opened: each worker has
    its own."""
    shared = "\n".join(f"import {module}" for module in PRELOADED)
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{shared}\nimport os, sys, torch\n"
            "print(len(os.listdir('/proc/self/task')), torch.cuda.is_initialized())\n"
            "print('torch' in sys.modules, 'prometheus_client' in sys.modules)",
        ],
        cwd=ROOT,
        env={**os.environ, **FORKABLE},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.stdout.split() == ["1", "False", "True", "False"]


def test_models_do_not_load_the_service() -> None:
    """The network can be used without a server; and the check above would find out what loads torch."""
    loaded = loaded_after("import models.load, models.classifier, models.training.evaluate")
    assert set(HEAVY) <= loaded
    assert not {name for name in loaded if name == "app" or name.startswith(("app.", "fastapi"))}


def test_the_import_contracts_hold() -> None:
    """import-linter finds every contract of pyproject.toml kept, and there are some."""
    ended = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout
    assert " 0 broken" in ended.stdout
    assert "the scheduler is pure policy KEPT" in ended.stdout


def test_six_types_carry_a_keep_ratio_from_the_request_to_the_answer() -> None:
    """Who needs more than these holds one of them: what is asked and what came out is written down once."""
    ratios = {"keep_ratio", "min_keep_ratio", "pruning"}
    rooms = [ROOT / "app" / room for room in ("http", "inference", "dispatch", "messages", "worker")]
    modules = [path for room in rooms for path in room.rglob("*.py")]
    modules += [ROOT / "models" / name for name in ("schedule.py", "classifier.py")]
    carrying = [
        f"{path.parent.name}.{path.stem}.{node.name}"
        for path in modules
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and any(isinstance(part, ast.AnnAssign) and ast.unparse(part.target) in ratios for part in node.body)
    ]
    on_the_way = [
        "inference.options.ImageOptions",  # the request, parsed
        "messages.image.Ask",  # what it asks of the network
        "models.schedule.Pruning",  # the part of that which the network is pruned by
        "models.classifier.Prediction",  # what the network found, in arrays
        "messages.image.Prediction",  # the same as it is told
        "http.schemas.Applied",  # the answer, as it is documented: with labels, or with an embedding
    ]
    beside = [
        "http.schemas.CascadeDescription",  # of the model
        "models.classifier.ImageRequest",  # an Ask, for whoever uses the network without a server
        "policy.agreement.Check",  # an image that has been answered
    ]
    assert sorted(carrying) == sorted(on_the_way + beside)


def test_nobody_imports_tests_or_benchmarks() -> None:
    """What is not installed cannot be relied on."""
    for folder in ("app", "models"):
        for path in (ROOT / folder).rglob("*.py"):
            for line in path.read_text().splitlines():
                assert not line.lstrip().startswith(
                    ("import tests", "from tests", "import benchmarks", "from benchmarks")
                ), path
