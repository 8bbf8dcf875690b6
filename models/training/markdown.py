"""Markdown tables."""

from collections.abc import Sequence


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Format cells as a Markdown table with aligned columns. The first row is the header."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
