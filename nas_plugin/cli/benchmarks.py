"""`nas-edit knowedit` and `nas-edit wikibigedit`: what EasyEdit's example scripts do, with any editor, saved as it goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from nas_plugin.cli import completing
from nas_plugin.cli.comparing import HPARAMS_HELP, METHODS_HELP, say_unfinished
from nas_plugin.cli.options import RunOptions, command_line, takes_run_options

_FILE_HELP = "Records: a .json or .jsonl file, a data set, or 'demo'."
_OUT_HELP = "Folder for a run folder each, the figures and the report."


@takes_run_options
def knowedit(
    stream: Annotated[str, typer.Argument(help=_FILE_HELP, autocompletion=completing.streams)],
    methods: Annotated[list[str], typer.Argument(help=METHODS_HELP, autocompletion=completing.methods)],
    options: RunOptions,
    hparams: Annotated[str, typer.Option(help=HPARAMS_HELP, autocompletion=completing.hparams_names)] = "nas-demo",
    out: Annotated[Path, typer.Option(help=_OUT_HELP)] = Path("nas-knowedit"),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core by default.")] = None,
) -> None:
    """Run KnowEdit: edit success, portability, locality and fluency, right after each edit and at the end.

    One edit after another, or --per-step at once; edits stay in the model.

    Example: nas-edit knowedit demo NAS-MEMIT MEMIT --edits 2
    """
    from nas_plugin.evaluation.runner.summary import KNOWEDIT

    # EasyEdit lets the model write from each edited prompt.
    measures = {"generate": True, "own_prompts": True}
    _run(stream, methods, options, hparams, out, workers, KNOWEDIT, measures)


@takes_run_options
def wikibigedit(
    stream: Annotated[str, typer.Argument(help=_FILE_HELP, autocompletion=completing.streams)],
    methods: Annotated[list[str], typer.Argument(help=METHODS_HELP, autocompletion=completing.methods)],
    options: RunOptions,
    hparams: Annotated[str, typer.Option(help=HPARAMS_HELP, autocompletion=completing.hparams_names)] = "nas-demo",
    out: Annotated[Path, typer.Option(help=_OUT_HELP)] = Path("nas-wikibigedit"),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core by default.")] = None,
) -> None:
    """Run WikiBigEdit: efficacy, generalization, locality, personas and multi-hop, right after each edit and at the end.

    One edit after another, or --per-step at once; edits stay in the model.

    Example: nas-edit wikibigedit demo NAS-AlphaEdit --edits 10 --per-step 5
    """
    from nas_plugin.evaluation.runner.summary import WIKIBIGEDIT

    _run(stream, methods, options, hparams, out, workers, WIKIBIGEDIT, {})


def _run(
    stream: str,
    methods: list[str],
    options: RunOptions,
    hparams: str,
    out: Path,
    workers: int | None,
    names: Mapping[str, str],
    measures: Mapping[str, Any],
) -> None:
    from nas_plugin.evaluation.logs import RUN_FILE
    from nas_plugin.evaluation.runner.compare import compare
    from nas_plugin.evaluation.runner.entrants import entrant
    from nas_plugin.evaluation.runner.summary import figures
    from nas_plugin.files import write_json

    taking_part = [entrant(name, hparams, options.model, options.settings) for name in methods]
    written, held_out = options.stream(stream)
    drawn = compare(
        taking_part,
        written,
        out,
        options.plan(len(written.cases), **measures),
        held_out=held_out,
        resume=options.resume,
        skip_bad=options.skip_bad,
        command=command_line(),
        workers=workers,
        trackers=options.trackers,
    )
    folders = [out / who.label for who in taking_part if (out / who.label / RUN_FILE).exists()]
    found = [figures(folder, names) for folder in folders]
    write_json(out / "summary.json", {"metrics": dict(names), "runs": found})
    console = Console()
    console.print(_table(found, names))
    say_unfinished(out, [who.label for who in taking_part])
    console.print(f"Figures: {out / 'summary.json'}. Report: {drawn}", soft_wrap=True)


def _table(found: list[dict[str, Any]], names: Mapping[str, str]) -> Any:
    from rich.table import Table

    table = Table(title="right after each edit → after all edits")
    table.add_column("")
    for name in (*names, "edits"):
        table.add_column(name, justify="right")
    for run in found:
        if run["unavailable"] is not None:
            table.add_row(run["label"], *("" for _ in names), "unavailable")
            continue
        pairs = ((run["immediate"][name], run["final"][name]) for name in names)
        table.add_row(run["label"], *(f"{_short(a)} → {_short(b)}" for a, b in pairs), str(run["edits"]))
    return table


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
