"""`nas-edit undo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console

from nas_plugin.cli.options import MODEL, SET, settings_of, wrong_usage
from nas_plugin.errors import UndoError


def undo(
    folder: Annotated[Path, typer.Argument(help="Folder that a session was kept in (keep_dir).")],
    edits: Annotated[
        list[str] | None, typer.Argument(help="Ids of edits, as nas-edit log shows them, or case ids.")
    ] = None,
    all_edits: Annotated[bool, typer.Option("--all", help="Take all edits back: the unedited weights.")] = False,
    model: Annotated[str | None, MODEL] = None,
    set: Annotated[list[str] | None, SET] = None,
    out: Annotated[
        Path | None, typer.Option(help="New folder for the whole model without these edits, and its tokenizer.")
    ] = None,
) -> None:
    """Take edits out of a kept session, whenever they were made, and leave the others.

    The model is loaded unedited, the session resumed, the edits undone; the folder then holds that state. An undone edit is not
    forgotten: the ledger says that it was made, and undone.

    Example: nas-edit undo my-edits 3 --model demo --out without-3
    """
    # Here and below, so that `nas-edit --help` does not wait for torch.
    from nas_plugin.keep.log import read_log
    from nas_plugin.keep.reopen import reopen
    from nas_plugin.keep.undo import standing

    if bool(edits) == all_edits:
        wrong_usage("give the ids of edits, as nas-edit log shows them, or --all for all of them")
    _check_new(out)
    # Before a model is loaded, which may take minutes.
    history = read_log(folder).replay.history
    for name in edits or ():
        standing(history, name)
    session = reopen(folder, model=model, settings=settings_of(set))
    before = sum(entry.stands for entry in session.history.entries)
    if edits:
        session.undo(*edits)
    else:
        session.revert()
    session.snapshot()
    left = sum(entry.stands for entry in session.history.entries)
    console, edited = Console(), cast("Any", session.model)
    norm = session.weights.total_ratio()
    console.print(f"{before - left} undone, {left} left, |W|/|W0| {norm:.4f}. Kept in {folder}.", soft_wrap=True)
    if out is not None:
        edited.save_pretrained(out)
        session.tok.save_pretrained(out)
        console.print(f"Model: {out}", soft_wrap=True, markup=False)


def _check_new(out: Path | None) -> None:
    """Refuse to write a model over something.

    Raises:
        UndoError: There is something.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UndoError(f"{out} is there already and not empty; give a new folder for the model.")
