"""README and documentation are true: what they list exists, and what exists is listed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from app import errors
from app.inference.options import ImageOptions, MaskFormat
from app.ray.settings import RaySettings
from app.settings.settings import Settings
from app.telemetry import metrics
from docs import reference
from models.schedule import CRITERIA, REDUCERS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def rows(text: str, first_column: str) -> list[list[str]]:
    """The cells of the table with that first heading."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {first_column} |"):
            next(lines)
            table = []
            for row in lines:
                if not row.startswith("|"):
                    return table
                table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]])
            return table
    pytest.fail(f"no table begins with {first_column!r}")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_tables_that_follow_from_the_code_are_up_to_date(path: Path) -> None:
    """`python docs/reference.py` would change nothing."""
    text = path.read_text(encoding="utf-8")
    assert reference.renewed(text) == text, "run: python docs/reference.py"


def test_every_table_has_its_place() -> None:
    """Each table of docs/reference.py is on one page, and none of them is empty."""
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    for name, table in reference.TABLES.items():
        assert text.count(f"<!-- table: {name}, made by") == 1, name
        assert len(table().splitlines()) > 5, name


def test_every_setting_metric_and_problem_is_in_a_table() -> None:
    """The tables leave nothing out, whatever group it is in."""
    listed = set(re.findall(r"^\| `--([a-z0-9-]+)`", page("configuration.md"), re.MULTILINE))
    assert listed == {name.replace("_", "-") for name in RaySettings.model_fields}
    assert listed >= {name.replace("_", "-") for name in Settings.model_fields}
    of_metrics = set(re.findall(r"^\| `(trimvit_\w+)`", page("metrics.md"), re.MULTILINE))
    registered = {family.name for family in metrics.REGISTRY.collect() if family.name.startswith("trimvit_")}
    assert {name.removesuffix("_total") for name in of_metrics} == registered
    of_errors = set(re.findall(r"^\| (\d+) \| `([a-z-]+)`", page("errors.md"), re.MULTILINE))
    assert of_errors == {(str(each.status), each.slug) for each in reference.leaves(errors.Problem)}


def test_every_option_is_listed_with_its_values() -> None:
    """The table of options has exactly the options, and names every criterion, reducer and mask."""
    table = {cells[0].strip("`"): cells[1] for cells in rows(page("api.md"), "option")}
    assert list(table) == list(ImageOptions.model_fields)
    assert re.findall(r"`(\w+)`", table["criterion"]) == list(CRITERIA)
    assert re.findall(r"`(\w+)`", table["reducer"]) == list(REDUCERS)
    assert re.findall(r"`(\w+)`", table["mask"]) == list(get_args(MaskFormat))


def test_make_targets_and_links_exist() -> None:
    """Every `make TARGET` of README and CONTRIBUTING is in the Makefile, and every linked file is there."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake (\w+)", text))
    assert named
    assert named <= targets
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in link:
            assert (ROOT / link).exists(), link


def test_the_site_is_built_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    """MkDocs builds it with all warnings as errors; the OpenAPI document is in it, and nothing is loaded
    from another host."""
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "site"
    assert "/v1/classify" in json.loads((site / "openapi.json").read_text())["paths"]
    for path in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*", path.read_text()
        )
        assert loaded == [], path


def test_the_readme_can_be_read_in_a_few_minutes() -> None:
    """All else is in docs/."""
    assert len(README.splitlines()) <= 180


def test_the_shown_answer_is_json() -> None:
    """The README's sample answer parses and has the members of a real one."""
    (block,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    assert set(json.loads(block)) == {"model", "results", "timings_ms"}


def test_the_structure_page_has_every_folder_and_nothing_that_is_gone() -> None:
    """Every folder of app with code has its line, and whatever it names, but for old names, is there."""
    now, _, _ = page("structure.md").partition("## Where things were before")
    packages = {str(each.parent.relative_to(ROOT)) for each in (ROOT / "app").rglob("__init__.py")}
    listed = set(re.findall(r"^\| `(app[\w/]*)` \|", now, re.MULTILINE))
    assert listed - {"app/static"} == packages
    for named in re.findall(r"`((?:app|models|tests|clients)/[\w./]+)`", now):
        assert (ROOT / named).exists(), named
