"""`make gpu-check`: its arithmetic by hand, and the command on a CPU, with the packages of a bare machine."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_check, gpu_parts
from benchmarks.report import Row, spread
from benchmarks.speed import keep_ratio_name
from benchmarks.verdict import verdict

ROOT = Path(__file__).parents[1]

# What a machine with PyTorch and timm has not: the rest of pyproject.toml.
ABSENT = (
    *(
        "beartype",
        "fastapi",
        "httpx",
        "hypothesis",
        "jaxtyping",
        "matplotlib",
        "msgspec",
        "prometheus_client",
    ),
    *("psutil", "pydantic", "pydantic_settings", "pytest_timeout", "setproctitle", "uvicorn", "xdist"),
)
WITHOUT = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import importlib.util
found = importlib.util.find_spec
def find_spec(name, *rest):
    return None if name.partition(".")[0] in {ABSENT!r} else found(name, *rest)

importlib.util.find_spec = find_spec
from benchmarks import gpu_check
sys.exit(gpu_check.main(sys.argv[1:]))
"""


@pytest.mark.long
def test_it_runs_where_there_is_pytorch_and_timm_alone(tmp_path: Path) -> None:
    """On a CPU, as small as it can be: every part has its figures, or says what it lacks; the table is
    printed, and the file holds no path of the machine. Its goals are not met, and the exit status says so."""
    output = tmp_path / "check.json"
    arguments = ["--device", "cpu", "--smallest", "--parts", "dense", "mixed", "host", "http"]
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments, "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stderr
    text = output.read_text()
    assert str(ROOT) not in text
    report = json.loads(text)
    dense, mixed, host, (http,) = report["results"].values()
    assert {(row["batch"], row["contestant"]) for row in dense} == {
        (batch, name) for batch in (1, 2) for name in ("timm", "keep_ratio 1", "keep_ratio 0.5")
    }
    assert {(row["batch"], row["ratios"]) for row in mixed} == {(2, "same"), (2, "new")}
    assert [row["ratios"] for row in host] == ["alike", "mixed"]
    for row in host:
        assert 0 < row["launched_ms"]["median"] <= row["done_ms"]["median"]
    assert "not installed: fastapi" in http["not_measured"]
    assert "NOT all goals are met" in ran.stdout
    for name in report["results"]:
        assert f"## {name}" in ran.stdout
    assert report["machine"]["torch"]


def test_the_tests_for_a_gpu_are_found_without_plugins(tmp_path: Path) -> None:
    """With pytest alone, and counted; without a GPU they skip, which is no success."""
    options = gpu_check._parser().parse_args(["--device", "cpu"])
    options.left_s = 200.0
    (row,) = gpu_parts.tests(options)
    assert (row["passed"], row["failed"]) == (0, 0)
    assert isinstance(row["skipped"], int)
    assert row["skipped"] > 40
    assert not verdict({"tests": [row]}, (), ())[0]["met"]


def test_counts_of_a_report(tmp_path: Path) -> None:
    """Errors are failures."""
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite tests="23" failures="3" errors="2" skipped="5"/>'
        '<testsuite tests="7" failures="0" errors="0" skipped="0"/></testsuites>'
    )
    assert gpu_parts.counts_of(report) == {"passed": 20, "failed": 5, "skipped": 5}


def results(**changes: float) -> dict[str, list[Row]]:
    """All goals met by a little, at batches 1 and 64."""
    figures = {"share": 0.91, "compiled": 0.96, "compiled_1": 0.95, "same": 0.9, "new": 0.92, **changes}
    one, half = keep_ratio_name(1), keep_ratio_name(0.5)
    return {
        "tests": [{"passed": 3, "failed": 0, "skipped": int(changes.get("skipped", 0))}],
        "dense": [
            {"batch": 64, "contestant": "timm", "images_per_s": 10.0},
            {"batch": 64, "contestant": one, "times_compiled": spread([figures["compiled"]])},
            {"batch": 64, "contestant": half, "share_of_macs_ratio": spread([figures["share"]])},
            {"batch": 1, "contestant": one, "times_compiled": spread([figures["compiled_1"]])},
            {"batch": 1, "contestant": half, "share_of_macs_ratio": spread([0.1])},  # no goal
        ],
        "mixed": [
            {"batch": 64, "ratios": way, "share_of_ideal": spread([figures[way]])} for way in ("same", "new")
        ],
    }


def test_all_goals_are_met() -> None:
    """Each batch size has its own goal at ratio 1; only large ones have the others."""
    goals = verdict(results(), (64, 1), (1.0, 0.5))
    assert all(goal["met"] for goal in goals)
    assert [goal["goal"] for goal in goals] == [
        "tests: all pass, none skips",
        "ratio 0.5, batch 64: of the MACs ratio",
        "ratio 1, batch 1: of timm compiled",
        "ratio 1, batch 64: of timm compiled",
        "mixed, same ratios, batch 64: of the ideal",
        "mixed, new ratios, batch 64: of the ideal",
    ]


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({"skipped": 1}, "tests"),
        ({"share": 0.89}, "ratio 0.5, batch 64"),
        ({"compiled": 0.94}, "ratio 1, batch 64"),
        ({"compiled_1": 0.94}, "ratio 1, batch 1"),
        ({"same": 0.89}, "mixed, same"),
        ({"new": 0.89}, "mixed, new"),
    ],
    ids=str,
)
def test_a_goal_that_is_missed_is_named(change: dict[str, Any], missed: str) -> None:
    """And only that one."""
    (goal,) = (goal for goal in verdict(results(**change), (64, 1), (1.0, 0.5)) if not goal["met"])
    assert str(goal["goal"]).startswith(missed)


def test_what_was_not_measured_is_not_met() -> None:
    """A verdict without figures is no verdict."""
    goals = verdict({"dense": [{"not_measured": "the time was up"}]}, (64, 1), (1.0, 0.5))
    assert len(goals) == 6
    assert not any(goal["met"] for goal in goals)
    assert {goal["measured"] for goal in goals} == {"not measured"}


def test_parts_end_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is under way ends after its row, later ones are not begun, and one that fails costs the
    others nothing."""
    now = 0.0

    def slow(_: object) -> Any:
        nonlocal now
        for number in range(5):
            now += 25.0
            yield {"number": number}

    def fails(_: object) -> Any:
        raise RuntimeError("CUDA out of memory")
        yield

    monkeypatch.setattr(gpu_check, "PARTS", {"fails": fails, "slow": slow, "never": slow})
    options = gpu_check._parser().parse_args(["--minutes", "1"])
    options.parts = ["fails", "slow", "never"]
    assert gpu_check.run(options, lambda: now) == {
        "fails": [{"not_measured": "RuntimeError: CUDA out of memory"}],
        "slow": [{"number": 0}, {"number": 1}, {"number": 2}, {"not_measured": "the time was up"}],
        "never": [{"not_measured": "the time was up"}],
    }


def test_what_hangs_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A compilation that takes for ever costs its part, and the verdict comes."""

    def hangs(_: object) -> Any:
        threading.Event().wait(200)
        yield {}

    monkeypatch.setattr(gpu_check, "PARTS", {"dense": hangs, "mixed": hangs})
    monkeypatch.setattr(gpu_check, "GRACE_S", 0.0)
    output = tmp_path / "check.json"
    arguments = ["--device", "cpu", "--smallest", "--minutes", "0.005", "--output", str(output)]
    assert gpu_check.main(arguments) == 1
    results = json.loads(output.read_text())["results"]
    assert results == {
        "dense": [{"not_measured": "TimeoutError: the time was up"}],
        "mixed": [{"not_measured": "the time was up"}],
    }


def test_it_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """What it needs, its parts and its goals."""
    with pytest.raises(SystemExit, match="0"):
        gpu_check.main(["--help"])
    said = capsys.readouterr().out
    for words in (
        "PyTorch 2.10 or later and timm",
        "90 % of the MACs ratio",
        "90 % of the ideal",
        *gpu_check.PARTS,
    ):
        assert words in said


def test_a_machine_without_a_gpu_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """In one line."""
    assert gpu_check.main(["--device", "cuda:99"]) == 1
    assert "the device cuda:99 does not exist" in capsys.readouterr().err
