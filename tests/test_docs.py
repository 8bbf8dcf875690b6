"""The README is true: what it lists exists, and what exists is listed."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from app import errors
from app.inference.options import ImageOptions, MaskFormat
from app.ray.settings import RaySettings
from app.settings.settings import Settings
from app.telemetry import metrics
from models.schedule import CRITERIA, REDUCERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def rows(first_column: str) -> list[list[str]]:
    """The cells of the README's table with that first heading."""
    lines = iter(README.splitlines())
    for line in lines:
        if line.startswith(f"| {first_column} |"):
            next(lines)
            table = []
            for row in lines:
                if not row.startswith("|"):
                    return table
                table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]])
            return table
    pytest.fail(f"the README has no table that begins with {first_column!r}")


def test_every_setting_is_listed_with_its_flag_variable_default_and_meaning() -> None:
    """The settings table has exactly the settings, in order, word for word."""
    expected = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        expected.append(
            [f"`--{name.replace('_', '-')}`", f"`TRIMVIT_{name.upper()}`", default, field.description]
        )
    assert rows("flag") == expected


def test_every_setting_of_ray_is_listed_with_its_flag_default_and_meaning() -> None:
    """The table of `trimvit ray` has exactly what it has beyond `trimvit serve`."""
    expected = []
    for name, field in RaySettings.model_fields.items():
        if name not in Settings.model_fields:
            default = "" if field.default is None else f"`{str(field.default).lower()}`"
            expected.append([f"`--{name.replace('_', '-')}`", default, field.description])
    assert len(expected) > 5
    assert rows("flag of `trimvit ray`") == expected


def test_every_metric_is_listed_with_its_labels_and_meaning() -> None:
    """The metrics table has exactly the metrics."""
    expected = []
    for metric in vars(metrics).values():
        if hasattr(metric, "_labelnames"):
            name = metric._name + ("_total" if metric._type == "counter" else "")
            expected.append([f"`{name}`", ", ".join(metric._labelnames), metric._documentation])
    assert len(expected) > 10
    assert rows("metric") == expected


def test_every_problem_is_listed_with_its_status() -> None:
    """The table of errors has exactly the problem types, beside their status."""
    listed = {
        (int(status), slug)
        for statuses, slugs, _ in rows("status")
        for status, slug in _paired(statuses.split(", "), re.findall(r"`([a-z-]+)`", slugs))
    }
    assert listed == {(problem.status, problem.slug) for problem in _problems(errors.Problem)}


def _paired(statuses: list[str], slugs: list[str]) -> list[tuple[str, str]]:
    """One status for all slugs, or one each."""
    return list(zip(statuses * len(slugs) if len(statuses) == 1 else statuses, slugs, strict=False))


def _problems(parent: type[errors.Problem]) -> list[type[errors.Problem]]:
    leaves = [leaf for child in parent.__subclasses__() for leaf in (_problems(child) or [child])]
    return [leaf for leaf in leaves if hasattr(leaf, "status")]


def test_every_option_is_listed_with_its_values() -> None:
    """The table of options has exactly the options, and names every criterion, reducer and mask."""
    table = {cells[0].strip("`"): cells[1] for cells in rows("option")}
    assert list(table) == list(ImageOptions.model_fields)
    assert re.findall(r"`(\w+)`", table["criterion"]) == list(CRITERIA)
    assert re.findall(r"`(\w+)`", table["reducer"]) == list(REDUCERS)
    assert re.findall(r"`(\w+)`", table["mask"]) == list(get_args(MaskFormat))


def test_make_targets_and_links_exist() -> None:
    """Every `make TARGET` of the README is in the Makefile, and every linked file is there."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake (\w+)", README))
    assert named
    assert named <= targets
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in link:
            assert (ROOT / link).exists(), link


def test_the_shown_answer_is_json() -> None:
    """The README's sample answer parses and has the members of a real one."""
    (block,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    assert set(json.loads(block)) == {"model", "results", "timings_ms"}


def test_the_structure_page_has_every_folder_and_nothing_that_is_gone() -> None:
    """Every folder of app with code has its line, and whatever it names, but for old names, is there."""
    page = (ROOT / "docs/structure.md").read_text(encoding="utf-8")
    now, _, _ = page.partition("## Where things were before")
    packages = {str(each.parent.relative_to(ROOT)) for each in (ROOT / "app").rglob("__init__.py")}
    listed = set(re.findall(r"^\| `(app[\w/]*)` \|", now, re.MULTILINE))
    assert listed - {"app/static"} == packages
    for named in re.findall(r"`((?:app|models|tests|clients)/[\w./]+)`", now):
        assert (ROOT / named).exists(), named
