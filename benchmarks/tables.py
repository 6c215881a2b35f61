"""Plain and Markdown tables from rows of strings."""

import math
from collections.abc import Sequence

from benchmarks.figures import Spread


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned with spaces: the first to the left, the others to the right."""
    _check(header, rows)
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    _check(header, rows)
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *escaped])


def spread_text(value: Spread | None, digits: int = 0) -> str:
    """`8 285 (8 100-8 400)`; repeats that never got there are said."""
    if value is None:
        return "-"
    missed = f", {value.missing} of {value.num} never" if value.missing else ""
    low, high = number_text(value.low, digits), number_text(value.high, digits)
    return f"{number_text(value.median, digits)} ({low}–{high}{missed})"


def number_text(value: float | None, digits: int = 0) -> str:
    if value is None:
        return "-"
    if math.isinf(value):
        return "never"
    return f"{value:,.{digits}f}".replace(",", " ")


def _check(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"row {list(row)} has {len(row)} cells, the header {len(header)}.")
