"""`nas-edit compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nas_plugin.cli import completing
from nas_plugin.cli.options import STREAM, RunOptions, command_line, takes_run_options

METHODS_HELP = (
    "Editors: MEMIT (plain), NAS-MEMIT, and so on; EasyEdit's FT, ROME, MEND, GRACE, MELO, WISE, UltraEdit. FT=ft.yaml names a "
    "hyperparameter file."
)
HPARAMS_HELP = "Which shipped hyperparameters the six editors use: nas-demo, gpt2-xl, llama3-8b, ..."


@takes_run_options
def compare(
    options: RunOptions,
    methods: Annotated[
        list[str] | None,
        typer.Argument(help=f"{METHODS_HELP} By default all six, plain and NAS.", autocompletion=completing.methods),
    ] = None,
    hparams: Annotated[str, typer.Option(help=HPARAMS_HELP, autocompletion=completing.hparams_names)] = "nas-demo",
    stream: Annotated[str, STREAM] = "demo",
    out: Annotated[Path, typer.Option(help="Folder for a run folder each, and the report.")] = Path("nas-compare"),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core by default.")] = None,
) -> None:
    """Run several editors on the same stream and checkpoints, side by side, and draw them on one page.

    Example: nas-edit compare MEMIT NAS-MEMIT --edits 10 --out nas-compare
    """
    from nas_plugin.evaluation.runner.compare import compare as run_all
    from nas_plugin.evaluation.runner.entrants import all_ours, entrant

    taking_part = [entrant(name, hparams, options.model, options.settings) for name in methods or all_ours()]
    written, held_out = options.stream(stream)
    drawn = run_all(
        taking_part,
        written,
        out,
        options.plan(len(written.cases)),
        held_out=held_out,
        resume=options.resume,
        skip_bad=options.skip_bad,
        command=command_line(),
        workers=workers,
        trackers=options.trackers,
    )
    say_unfinished(out, [who.label for who in taking_part])
    Console().print(f"Report: {drawn}", soft_wrap=True)


def say_unfinished(out: Path, labels: Sequence[str]) -> None:
    """Say which runs of a comparison were stopped before their end, and how to go on.

    Args:
        out: Its folder.
        labels: Those who took part.
    """
    from nas_plugin.evaluation.logs import RUN_FILE, read_run

    runs = {label: read_run(out / label) for label in labels if (out / label / RUN_FILE).exists()}
    left = [label for label in labels if label not in runs or runs[label].status != "done"]
    left = [label for label in left if label not in runs or runs[label].unavailable is None]
    if left:
        Console().print(f"Stopped: {', '.join(left)}. To go on: the same command with --resume.", soft_wrap=True)
