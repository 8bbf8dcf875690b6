"""Write the rows of a result as JSON, and format them as a table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from models.training.markdown import markdown

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Spread:
    """The median, quartiles and extremes of a figure that was measured once per round."""

    median: float
    lower_quartile: float
    upper_quartile: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        quartiles = f"{self.lower_quartile:.3f}-{self.upper_quartile:.3f}"
        return f"{self.median:.3f} ({quartiles}; {self.lowest:.3f}-{self.highest:.3f})"


def spread(values: Sequence[float]) -> Spread:
    """Compute the spread over rounds, with numpy's linear quantiles rounded to four decimals."""
    lowest, lower, median, upper, highest = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).round(4).tolist()
    return Spread(median, lower, upper, lowest, highest)


def by_way(found: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Row]:
    """Build a row for each way, with the spread of each figure."""
    return [
        {"way": way, **{name: spread(values) for name, values in figures.items()}}
        for way, figures in found.items()
    ]


def table(rows: Sequence[Row]) -> str:
    """Format rows as a Markdown table with a column for each key. Columns with lists are left out."""
    headings = list(dict.fromkeys(key for row in rows for key in row))
    headings = [key for key in headings if not any(isinstance(row.get(key), list) for row in rows)]
    return markdown([headings, *([_text(row.get(key)) for key in headings] for row in rows)])


def write(path: Path, report: Mapping[str, object]) -> None:
    """Write a report as JSON. The file is replaced atomically, so that an interrupted run leaves a complete
    file."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(report, indent=1, default=asdict) + "\n")
    unfinished.replace(path)


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "NO"
        case float():
            return f"{value:.4g}"
        case _:
            return str(value)
