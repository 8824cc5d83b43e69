"""`nas-edit run` and `nas-edit report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nas_plugin.cli.options import HPARAMS_FILE, STREAM, RunOptions, command_line, takes_run_options


@takes_run_options
def run(
    hparams: Annotated[str, HPARAMS_FILE],
    options: RunOptions,
    stream: Annotated[str, STREAM] = "demo",
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("nas-run"),
) -> None:
    """Write a stream of edits with one editor, logging every edit and measuring at checkpoints.

    Stop it with Ctrl-C; go on with --resume and the same options.

    Example: nas-edit run NAS-AlphaEdit/nas-demo --edits 10 --every 5 --set keep_dir=my-edits --out nas-run
    """
    # Here and below, so that `nas-edit --help` does not wait for torch.
    from nas_plugin.evaluation.runner import SessionWriter, run_stream
    from nas_plugin.evaluation.runner.load import load_hparams, load_model, model_name
    from nas_plugin.evaluation.runner.tracking import check_trackers

    check_trackers(options.trackers)

    named = {} if options.model is None else {"model_name": model_name(options.model)}
    loaded = load_hparams(hparams, {**named, **options.settings})
    written, held_out = options.stream(stream)
    plan = options.plan(len(written.cases))
    writer = SessionWriter(*load_model(loaded), loaded)
    finished = run_stream(
        writer,
        written,
        out,
        plan,
        held_out=held_out,
        resume=options.resume,
        skip_bad=options.skip_bad,
        command=command_line(),
        trackers=options.trackers,
    )
    if not writer.group.main:
        return
    console = Console()
    if not finished:
        console.print(f"Stopped. To go on: the same command with --resume. So far: {out}")
    _draw([out], out / "report.html", console)


def report(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders of several.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Draw one page from run folders, finished or not.

    Example: nas-edit report nas-run nas-compare --out report.html
    """
    from nas_plugin.evaluation.logs import RUN_FILE

    found: list[Path] = []
    for folder in folders:
        inner = [] if (folder / RUN_FILE).exists() else sorted(path.parent for path in folder.glob(f"*/{RUN_FILE}"))
        found += inner or [folder]
    from nas_plugin.evaluation.report import write_report

    Console().print(f"Report: {write_report(found, out)}", soft_wrap=True)


def _draw(folders: list[Path], out: Path, console: Console) -> None:
    from nas_plugin.errors import PackageMissingError
    from nas_plugin.evaluation.report import write_report

    try:
        write_report(folders, out)
    except PackageMissingError as error:
        console.print(f"The logs are in {folders[0]}. No report was drawn: {error}", soft_wrap=True)
    else:
        console.print(f"Report: {out}", soft_wrap=True)
