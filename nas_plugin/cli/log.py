"""`nas-edit log`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from nas_plugin.keep.log import Row, Summary

_FILTERS = "Which events"
_WIDE = 200
_SHORT = 12


class Status(str, Enum):
    """What an edit may have become."""

    WRITTEN = "written"
    SKIPPED = "skipped"
    REJECTED = "rejected"
    REPLACED = "replaced"
    UNDONE = "undone"
    TAKEN_BACK = "taken back"


def log(
    folder: Annotated[Path, typer.Argument(help="Folder that a session was kept in (keep_dir), or its ledger.jsonl.")],
    status: Annotated[
        Status | None, typer.Option(help="Edits that have this status now.", rich_help_panel=_FILTERS)
    ] = None,
    subject: Annotated[
        str | None, typer.Option(help="Edits with this in their subject.", rich_help_panel=_FILTERS)
    ] = None,
    case: Annotated[str | None, typer.Option(help="Edits with this case id.", rich_help_panel=_FILTERS)] = None,
    id: Annotated[
        str | None, typer.Option("--id", help="The edit with this id, and its undo.", rich_help_panel=_FILTERS)
    ] = None,
    alarms: Annotated[
        bool, typer.Option("--alarms", help="Edits that crossed norm_alarm.", rich_help_panel=_FILTERS)
    ] = False,
    last: Annotated[int | None, typer.Option(min=1, help="The last so many of them.", rich_help_panel=_FILTERS)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Their ledger lines, one JSON object a line.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check ledger, snapshots and factors against each other first.")
    ] = False,
    model: Annotated[
        Path | None, typer.Option(help="Verify that this saved model, too, is what the ledger ends with.")
    ] = None,
) -> None:
    """Show what a kept session did, which edits stand now, and whether its files are whole. Changes nothing.

    Example: nas-edit log my-edits --status undone --verify
    """
    # Here, so that `nas-edit --help` does not wait for torch.
    from nas_plugin.keep.log import Wanted, read_log, rows, summary
    from nas_plugin.keep.verify import verify as verify_folder
    from nas_plugin.keep.verify import verify_model

    read = read_log(folder)
    checked = verify_folder(read) if verify or model is not None else []
    if model is not None:
        checked.append(verify_model(read, model))
    wanted = Wanted(None if status is None else status.value, subject, case, id, alarms, last)
    chosen = rows(read, wanted)
    console = Console()
    if as_json:
        for row in chosen:
            typer.echo(json.dumps(row.content))
        # What is piped is nothing but lines.
        console = Console(stderr=True)
    else:
        if not console.is_terminal:
            console = Console(width=max(console.width, _WIDE))
        console.print(_table(chosen))
        console.print(_paragraph(summary(read)), soft_wrap=True)
    if checked:
        console.print(Text(f"verified: {_shown('; '.join(checked))}."), soft_wrap=True)


def _table(chosen: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("edit", "step"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("id", "case"):
        table.add_column(name, overflow="fold")
    table.add_column("now", no_wrap=True)
    table.add_column("prompt -> target", overflow="fold", ratio=3)
    for name in ("loss", "updates", "|W|/|W0|", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold", ratio=2)
    for row in chosen:
        table.add_row(*(Text(_shown(cell)) for cell in (_edit(row) if row.now is not None else _event(row))))
    return table


def _edit(row: Row) -> tuple[str, ...]:
    line = row.line
    alarm = " alarm" if line["alarm"] else ""
    return (
        str(row.edit),
        str(line["step"]),
        line["id"],
        line["case"] or "",
        row.now or "",
        f"{line['prompt']} -> {line['target']}",
        _number(line.get("loss"), 3),
        _number(line.get("updates"), 0),
        f"{_number(line.get('norm_before'), 4)} -> {_number(line.get('norm_after'), 4)}{alarm}",
        _number(line.get("seconds"), 2),
        line["reason"] or "",
    )


def _event(row: Row) -> tuple[str, ...]:
    said = {
        "rollback": "the last step that wrote something is taken back",
        "undo": ", ".join(row.line.get("ids", ())),
        "revert": "back to the unedited weights",
        "foreign": "the weights were changed by something else",
    }
    event = row.line["event"]
    return ("", "", "", "", event.upper(), said[event], "", "", "", "", "")


def _paragraph(found: Summary) -> Text:
    edits = sum(found.statuses.values())
    by_status = ", ".join(f"{count} {status}" for status, count in sorted(found.statuses.items()))
    parts = [
        f"{found.method} on the model {found.model[:_SHORT]}.",
        f"{edits} edits{': ' if by_status else ''}{by_status}.",
        f"|W|/|W0| {'not known since a foreign change' if found.norm is None else f'{found.norm:.4f}'}.",
        f"{found.seconds:.1f} seconds.",
        f"Alarms: {found.alarms}.",
    ]
    if found.torn:
        parts.append(f"The last {found.torn} bytes are no whole step, as after a kill; resume() cuts them off.")
    return Text(_shown(" ".join(parts)))


def _number(value: Any, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _shown(text: str) -> str:
    """Replace what would move the cursor or colour the terminal: texts come from a file that anybody may have written."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
