"""Tables for people."""

from collections.abc import Sequence


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table of these cells, the first row its header, with columns lined up."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
