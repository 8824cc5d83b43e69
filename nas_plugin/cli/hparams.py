"""`nas-edit hparams`."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nas_plugin.cli import completing

app = typer.Typer(
    no_args_is_help=True,
    help="Hyperparameter files: those shipped, your own, and new ones for another model.\n\nExample: nas-edit hparams list",
)

_WIDE = 160


class Mark(str, Enum):
    """Where a file's numbers are from."""

    PUBLISHED = "published"
    DERIVED = "derived"
    UNTESTED = "untested"


@app.command("list")
def list_(
    method: Annotated[str | None, typer.Option(help="Only of this editor, as NAS-MEMIT.")] = None,
    mark: Annotated[Mark | None, typer.Option(help="Only with this mark.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List the shipped files with their model and mark.

    published: numbers published for this method and model; derived: from those of another method or a like model; untested:
    chosen by rule.

    Example: nas-edit hparams list --method NAS-AlphaEdit --mark published
    """
    from nas_plugin.hparams import list_hparams

    files = list_hparams(method, None if mark is None else mark.value)
    if as_json:
        typer.echo(json.dumps([{**asdict(file), "path": str(file.path)} for file in files], indent=1))
        return
    _print(("file", "model", "mark", "from"), [(file.name, file.model, file.mark, file.source) for file in files])


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(help="Shipped file, as NAS-MEMIT/gpt2-xl, or a path.", autocompletion=completing.hparams_files),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="The values as JSON.")] = False,
) -> None:
    """Show every value of a file and where it is from: the file, the method, or the class's default.

    Example: nas-edit hparams show NAS-MEMIT/llama3.1-8b
    """
    from nas_plugin.hparams import show_hparams

    file, settings = show_hparams(name)
    if as_json:
        typer.echo(json.dumps({setting.key: setting.value for setting in settings}, indent=1))
        return
    console = Console()
    head = (
        f"{file.name}: {file.method} on {file.model}. {file.mark.capitalize()}{': ' if file.mark else ''}{file.source}"
    )
    console.print(Text(head), soft_wrap=True)
    console.print(Text(str(file.path)), soft_wrap=True)
    _print(("key", "value", "from"), [(s.key, json.dumps(s.value), s.origin) for s in settings])


@app.command()
def copy(
    name: Annotated[
        str,
        typer.Argument(help="Shipped file, as NAS-MEMIT/gpt2-xl, or a path.", autocompletion=completing.hparams_files),
    ],
    target: Annotated[Path, typer.Argument(help="File to write, or an existing folder.")] = Path("."),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Copy a file to where you can change it.

    Example: nas-edit hparams copy NAS-MEMIT/gpt2-xl my.yaml
    """
    from nas_plugin.hparams import copy_hparams

    _say(f"wrote {copy_hparams(name, target, overwrite=overwrite)}")


@app.command()
def validate(
    paths: Annotated[list[Path], typer.Argument(help="Files, or folders of them.")],
) -> None:
    """Check files without loading a model: all problems of all files; exit code 1 if there are any.

    Example: nas-edit hparams validate my.yaml

    Raises:
        typer.Exit: There are problems.
    """
    from nas_plugin.hparams import validate_hparams

    files, problems = validate_hparams(*paths)
    for problem in problems:
        _say(f"{problem.path}: {problem.message}", error=True)
    wrong = len({problem.path for problem in problems})
    _say(f"{len(files)} checked, {wrong} with problems")
    if problems:
        raise typer.Exit(1)


@app.command()
def new(
    model: Annotated[str, typer.Argument(help="Folder, hub name, or config.json of a model.")],
    out: Annotated[Path, typer.Option(help="Where to write; each method gets a folder in it.")] = Path("hparams"),
    method: Annotated[
        list[str] | None, typer.Option(help="Editor, as NAS-MEMIT; several times; all by default.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Blocks to edit, as 4,5,6; by default by depth.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the files; by default the model's.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
) -> None:
    """Write files for a model from its configuration; its weights are not read.

    Example: nas-edit hparams new HuggingFaceTB/SmolLM3-3B --method NAS-MEMIT
    """
    from nas_plugin.cli.options import numbers
    from nas_plugin.hparams import new_hparams

    chosen: dict[str, Any] = {} if method is None else {"methods": method}
    blocks = None if layers is None else numbers(layers, "--layers")
    for path in new_hparams(model, out, layers=blocks, name=name, overwrite=overwrite, **chosen):
        _say(f"wrote {path}")


def _say(text: str, *, error: bool = False) -> None:
    Console(stderr=error).print(text, markup=False, highlight=False, soft_wrap=True)


def _print(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, _WIDE))
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
