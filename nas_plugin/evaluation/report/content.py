"""What a page consists of, and how numbers are written on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

ABSENT = "–"


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        head: What it is about.
        cells: One per column after the first.
        symbol: Identifier of the line sample before its head, if any.
        note: Text across all cells instead of them.
    """

    head: str
    cells: tuple[str, ...] = ()
    symbol: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: Its name.
        columns: Heads of the columns.
        groups: Rows that belong together.
        text: How to read it.
        spans: Heads above the heads, each with the number of columns it stands over; all columns but the first.
        prose: Cells hold text rather than numbers.
    """

    title: str
    columns: tuple[str, ...]
    groups: tuple[tuple[Row, ...], ...]
    text: str = ""
    spans: tuple[tuple[str, int], ...] = ()
    prose: bool = False


@dataclass(frozen=True)
class Key:
    """An entry of a legend: the line sample `symbol`, a name, and what there is to say about it."""

    symbol: str
    label: str
    remark: str = ""


@dataclass(frozen=True)
class Panel:
    """A chart with its heading, legend and numbers."""

    title: str
    chart: Markup
    keys: tuple[Key, ...]
    table: Table


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: Its identifier.
        title: Heading.
        text: What it shows and how to read it.
        keys: Legend of all its charts.
        panels: Charts.
        tables: Tables after them.
    """

    anchor: str
    title: str
    text: str
    keys: tuple[Key, ...] = ()
    panels: tuple[Panel, ...] = ()
    tables: tuple[Table, ...] = ()


def number(value: float | None, digits: int = 1) -> str:
    """Write a number with fixed decimals.

    Args:
        value: The number.
        digits: Decimals.

    Returns:
        The number, a dash for None, words for NaN and infinity.
    """
    if value is None:
        return ABSENT
    # Adding zero turns what was rounded to minus zero into zero.
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−") if math.isfinite(value) else "not finite"


def short(value: float | None) -> str:
    """Write a number with three significant digits, whatever its size.

    Args:
        value: The number.

    Returns:
        As `number`; powers of ten only where they are needed.
    """
    if value is None or not math.isfinite(value):
        return number(value)
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
        return number(value, digits)
    return f"{value:.2e}".replace("-", "−")
