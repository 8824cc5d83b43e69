"""Tables of a study, as Markdown and on a terminal, and what stands in their cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table as RichTable

from nas_plugin.evaluation.report.content import ABSENT, Table, number


def markdown(title: str, tables: Sequence[Table], head: Mapping[str, Any]) -> str:
    """Write the tables of a study.

    Args:
        title: Title of the study.
        tables: Its tables.
        head: The head of `study.json`.

    Returns:
        A Markdown text that ends with a line break.
    """
    blocks = [f"# {title}", f"`{head['command']}`"]
    blocks += [block for table in tables for block in (f"## {table.title}", _rows(table), table.text)]
    if head["protocols"]:
        blocks.append("\n".join(f"- `{name}`: {text}" for name, text in head["protocols"].items()))
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    blocks.append(f"{versions}; {head['seconds']:.0f} seconds.")
    return "\n\n".join(blocks) + "\n"


def on_terminal(table: Table) -> RichTable:
    """Lay a table out for a terminal.

    Args:
        table: The table.

    Returns:
        The same for rich.
    """
    result = RichTable(title=table.title, caption=table.text, caption_justify="left")
    for place, column in enumerate(table.columns):
        result.add_column(column, justify="right" if place else "left", overflow="fold")
    for group in table.groups:
        for row in group:
            result.add_row(row.head, *row.cells)
        result.add_section()
    return result


def plus_minus(sample: Mapping[str, Any], digits: int = 1) -> str:
    """Write mean ± standard deviation; of one value, the value."""
    mean = number(sample["mean"], digits)
    return mean if sample["std"] is None else f"{mean} ± {number(sample['std'], digits)}"


def points(value: int | None) -> str:
    """Write a collapse point."""
    return ABSENT if value is None else str(value)


def _rows(table: Table) -> str:
    lines = [table.columns, ("---", *("---:" for _ in table.columns[1:]))]
    lines += [(row.head, *row.cells) for group in table.groups for row in group]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
