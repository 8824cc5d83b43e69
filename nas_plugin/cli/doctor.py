"""`nas-edit doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from nas_plugin.cli import completing
from nas_plugin.cli.options import MODEL, SET, end_with, settings_of

_STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}


def doctor(
    hparams: Annotated[
        str | None,
        typer.Argument(
            help="Hyperparameters to look at too: a shipped name or a path.", autocompletion=completing.hparams_files
        ),
    ] = None,
    model: Annotated[str | None, MODEL] = None,
    set: Annotated[list[str] | None, SET] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, and nothing else, on standard output.")
    ] = False,
) -> None:
    """Look at this environment, and at a hyperparameter file with its model, statistics and anchor. Downloads nothing.

    Each line is ok, a warning (editing works, but not all of it, or slower) or a problem, with what to do. A problem ends it with
    exit code 1.

    Example: nas-edit doctor NAS-MEMIT/nas-demo
    """
    # Here, so that `nas-edit --help` does not wait for torch.
    from nas_plugin.doctor import State, examine

    found = []
    console = Console()
    for finding in examine(hparams, model=model, settings=settings_of(set)):
        found.append(finding)
        if not as_json:
            line = Text.assemble(
                (f"{finding.state.value:<8}", _STYLES[finding.state.value]), f"{finding.name}: {finding.says}"
            )
            console.print(line, soft_wrap=True)
            if finding.advice is not None:
                console.print(Text(f"{'':<8}{finding.advice}", style="dim"), soft_wrap=True)
    wrong = sum(finding.state is State.PROBLEM for finding in found)
    if as_json:
        told = [{**asdict(finding), "state": finding.state.value} for finding in found]
        typer.echo(json.dumps({"ok": not wrong, "findings": told}))
    if wrong:
        end_with(1)
