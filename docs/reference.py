"""The tables of the documentation that follow from the code: settings, metrics, errors.

    python docs/reference.py            # write them into the pages, after a change of the code

A page holds each table between two comments, and everything else on it is written by hand.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

from app import errors
from app.ray.settings import RaySettings
from app.settings.compute import ComputeSettings
from app.settings.http import HttpSettings
from app.settings.limits import LimitSettings
from app.settings.model import ModelSettings
from app.settings.processes import ProcessSettings
from app.settings.security import SecuritySettings
from app.settings.settings import Settings
from app.settings.telemetry import TelemetrySettings
from app.telemetry import metrics

DOCS = Path(__file__).parent
GROUPS = {
    "Model": ModelSettings,
    "Devices and batches": ComputeSettings,
    "HTTP": HttpSettings,
    "Security": SecuritySettings,
    "Limits": LimitSettings,
    "Processes": ProcessSettings,
    "Logs and agreement": TelemetrySettings,
}


def settings() -> str:
    """A heading and a table for each group of settings."""
    return "\n\n".join(
        f"### {title}\n\n{_settings_of(group.model_fields)}" for title, group in GROUPS.items()
    )


def _settings_of(fields: dict[str, FieldInfo]) -> str:
    rows = [
        (f"`{_flag(name)}`", f"`TRIMVIT_{name.upper()}`", _default(field), field.description or "")
        for name, field in fields.items()
    ]
    return _table(("flag", "environment variable", "default", "meaning"), rows)


def ray_settings() -> str:
    """What `trimvit ray` has beyond `trimvit serve`."""
    rows = [
        (f"`{_flag(name)}`", _default(field), field.description or "")
        for name, field in RaySettings.model_fields.items()
        if name not in Settings.model_fields
    ]
    return _table(("flag of `trimvit ray`", "default", "meaning"), rows)


def every_metric() -> str:
    """Each metric with its type and labels."""
    rows = []
    for metric in vars(metrics).values():
        if hasattr(metric, "_labelnames"):
            name = metric._name + ("_total" if metric._type == "counter" else "")
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            rows.append((f"`{name}`", metric._type, labels, metric._documentation))
    return _table(("metric", "type", "labels", "meaning"), rows)


def client_errors() -> str:
    """Problems that sending the same request again does not solve."""
    return _problems(errors.ClientProblem)


def server_errors() -> str:
    """Problems that may be gone later."""
    return _problems(errors.ServerProblem)


def _problems(parent: type[errors.Problem]) -> str:
    rows = [
        (str(problem.status), f"`{problem.slug}`", " ".join((problem.__doc__ or "").split()))
        for problem in sorted(leaves(parent), key=lambda problem: problem.status)
    ]
    return _table(("status", "type", "when"), rows)


def leaves(parent: type[errors.Problem]) -> Iterator[type[errors.Problem]]:
    """The problems that are answered, below ``parent``."""
    for child in parent.__subclasses__():
        if hasattr(child, "status"):
            yield child
        yield from leaves(child)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _default(field: FieldInfo) -> str:
    if field.default is None:
        return ""
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines)


TABLES: dict[str, Callable[[], str]] = {
    "settings": settings,
    "ray settings": ray_settings,
    "metrics": every_metric,
    "client errors": client_errors,
    "server errors": server_errors,
}
_TABLE = re.compile(
    r"(<!-- table: ([\w ]+), made by docs/reference\.py -->)\n.*?(<!-- end of table -->)", re.DOTALL
)


def renewed(page: str) -> str:
    """The text of a page with its tables as the code has them now. KeyError for a table that is unknown."""
    return _TABLE.sub(lambda found: f"{found[1]}\n\n{TABLES[found[2]]()}\n\n{found[3]}", page)


if __name__ == "__main__":
    for path in sorted(DOCS.glob("*.md")):
        before = path.read_text(encoding="utf-8")
        after = renewed(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"renewed {path.name}")
