"""The `study` commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nas_plugin.evaluation.studies.shared import Study

app = typer.Typer(no_args_is_help=True, pretty_exceptions_show_locals=False)

Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method", help="Editor, several times; all six by default. MEMIT=my.yaml names a hyperparameter file."
    ),
]
Model = Annotated[
    str | None, typer.Option(help="Folder or name of the model, or 'demo'; by default that of the hyperparameters.")
]
Stream = Annotated[str, typer.Option(help="'demo', a .json or .jsonl file, or a data set's name.")]
Hparams = Annotated[str, typer.Option(help="Which shipped hyperparameters: nas-demo, gpt2-xl, llama3-8b, ...")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Another value for a hyperparameter; several times."),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave malformed records out.")]
Out = Annotated[Path | None, typer.Option(help="Folder for study.json and study.md; by default nas-study-NAME.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes; by default one a core for the embedded model, else one.")
]
Edits = Annotated[int, typer.Option(min=1, help="Number of edits: the first cases of the stream.")]
Every = Annotated[int, typer.Option(min=1, help="Edits between checkpoints.")]


@app.callback()
def study() -> None:
    """Study norm anchoring: its cost, its anchor, its dependence on the order of edits.

    Example: nas-edit study overhead --method MEMIT --edits 5
    """


@app.command()
def plasticity(
    method: Methods = None,
    model: Model = None,
    stream: Stream = "demo",
    hparams: Hparams = "nas-demo",
    settings: Set = None,
    skip_bad: SkipBad = False,
    edits: Edits = 400,
    out: Out = None,
    workers: Workers = None,
) -> None:
    """Write every edit into the original model, alone, without and with NAS.

    Example: nas-edit study plasticity --method MEMIT --edits 5
    """
    from nas_plugin.evaluation.studies.plasticity import Plasticity

    _conduct(Plasticity(edits), (model, stream, hparams, settings, skip_bad), method, out, workers)


@app.command()
def anchor_bias(
    method: Methods = None,
    model: Model = None,
    stream: Stream = "demo",
    hparams: Hparams = "nas-demo",
    settings: Set = None,
    skip_bad: SkipBad = False,
    edits: Edits = 240,
    every: Every = 30,
    out: Out = None,
    workers: Workers = None,
) -> None:
    """Go through a stream with anchors from pilots of small, ordinary and large norms.

    Example: nas-edit study anchor-bias --method AlphaEdit --edits 6 --every 3
    """
    from nas_plugin.evaluation.studies.anchor_bias import AnchorBias

    _conduct(AnchorBias(edits, every), (model, stream, hparams, settings, skip_bad), method, out, workers)


@app.command()
def order(
    method: Methods = None,
    model: Model = None,
    stream: Stream = "demo",
    hparams: Hparams = "nas-demo",
    settings: Set = None,
    skip_bad: SkipBad = False,
    edits: Edits = 240,
    every: Every = 30,
    shuffles: Annotated[int, typer.Option(min=0, help="Number of shuffled orders, with seeds 1, 2, ...")] = 3,
    out: Out = None,
    workers: Workers = None,
) -> None:
    """Go through the same edits in other orders, without and with NAS.

    Example: nas-edit study order --method MEMIT --edits 6 --every 3 --shuffles 1
    """
    from nas_plugin.evaluation.studies.order import Order

    _conduct(Order(edits, every, shuffles), (model, stream, hparams, settings, skip_bad), method, out, workers)


@app.command()
def sample_size(
    method: Methods = None,
    model: Model = None,
    stream: Stream = "demo",
    hparams: Hparams = "nas-demo",
    settings: Set = None,
    skip_bad: SkipBad = False,
    size: Annotated[list[int], typer.Option(min=1, help="Number of pilots; may be given several times.")] = [  # noqa: B006
        5,
        10,
        25,
        50,
        100,
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Number of samples, with seeds 0, 1, ...")] = 20,
    out: Out = None,
    workers: Workers = None,
) -> None:
    """Measure the anchor with more and more pilots, in several samples.

    Example: nas-edit study sample-size --method MEMIT --size 5 --size 10 --seeds 3
    """
    from nas_plugin.evaluation.studies.sample_size import SampleSize

    _conduct(
        SampleSize(tuple(sorted(set(size))), seeds), (model, stream, hparams, settings, skip_bad), method, out, workers
    )


@app.command()
def overhead(
    method: Methods = None,
    model: Model = None,
    stream: Stream = "demo",
    hparams: Hparams = "nas-demo",
    settings: Set = None,
    skip_bad: SkipBad = False,
    edits: Annotated[int, typer.Option(min=2, help="Number of edits that are timed on each side.")] = 100,
    out: Out = None,
) -> None:
    """Time single edits without and with NAS in turn, at one thread.

    Example: nas-edit study overhead --method MEMIT --edits 5
    """
    from nas_plugin.evaluation.studies.overhead import Overhead

    _conduct(Overhead(edits), (model, stream, hparams, settings, skip_bad), method, out)


@app.command()
def undo(
    method: Methods = None,
    model: Model = None,
    stream: Stream = "demo",
    hparams: Hparams = "nas-demo",
    settings: Set = None,
    skip_bad: SkipBad = False,
    edits: Edits = 300,
    undone: Annotated[int, typer.Option(min=1, help="How many of them are undone.")] = 50,
    seeds: Annotated[int, typer.Option(min=1, help="Number of streams: orders and draws with seeds 1, 2, ...")] = 3,
    out: Out = None,
    workers: Workers = None,
) -> None:
    """Undo some edits of a stream with NAS, and ask for them and for the others.

    Example: nas-edit study undo --method MEMIT --edits 6 --undone 2 --seeds 1
    """
    from nas_plugin.evaluation.studies.undo import Undo

    _conduct(Undo(edits, undone, seeds), (model, stream, hparams, settings, skip_bad), method, out, workers)


@app.command()
def tokens(
    method: Methods = None,
    model: Model = None,
    stream: Stream = "demo",
    hparams: Hparams = "nas-demo",
    settings: Set = None,
    skip_bad: SkipBad = False,
    per_dim: Annotated[
        list[float] | None,
        typer.Option(min=0.01, help="Tokens for each dimension of a key; may be given several times."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of samples, with seeds 0, 1, ...")] = 3,
    edits: Edits = 50,
    out: Out = None,
    workers: Workers = None,
) -> None:
    """Edit with second moments over fewer and more tokens of the text.

    Example: nas-edit study tokens --method MEMIT --edits 20 --seeds 2 --per-dim 1 --per-dim 8
    """
    from nas_plugin.evaluation.studies.tokens import Tokens

    sizes = tuple(sorted(set(per_dim))) if per_dim else Tokens.per_dim
    _conduct(Tokens(sizes, seeds, edits), (model, stream, hparams, settings, skip_bad), method, out, workers)


@app.command()
def precision(
    method: Methods = None,
    model: Model = None,
    stream: Stream = "demo",
    hparams: Hparams = "nas-demo",
    settings: Set = None,
    skip_bad: SkipBad = False,
    edits: Edits = 200,
    dtype: Annotated[
        list[str] | None, typer.Option(help="float32, bfloat16, float16; may be given several times; all by default.")
    ] = None,
    out: Out = None,
    workers: Workers = None,
) -> None:
    """Go through a stream in several number types, with float32 masters and without.

    Example: nas-edit study precision --method MEMIT --edits 20 --dtype bfloat16
    """
    from nas_plugin.evaluation.studies.precision import Precision

    types = tuple(dtype) if dtype else Precision.dtypes
    _conduct(Precision(edits, types), (model, stream, hparams, settings, skip_bad), method, out, workers)


def _conduct(
    study: Study,
    on: tuple[str | None, str, str, list[str] | None, bool],
    methods: list[str] | None,
    out: Path | None,
    workers: int | None = None,
) -> None:
    from rich.console import Console

    from nas_plugin.cli.options import RunOptions, command_line
    from nas_plugin.evaluation.runner.entrants import OURS
    from nas_plugin.evaluation.studies.conduct import STUDY_FILE, TABLE_FILE, conduct
    from nas_plugin.evaluation.studies.shared import Setting
    from nas_plugin.evaluation.studies.written import on_terminal

    model, stream, hparams, values, skip_bad = on
    setting = Setting(model, stream, hparams, RunOptions(set=values).settings, skip_bad)
    folder = out if out is not None else Path(f"nas-study-{study.name}")
    console = Console()
    for table in conduct(study, setting, methods or OURS, folder, command=command_line(), workers=workers):
        console.print(on_terminal(table))
    console.print(f"Numbers: {folder / STUDY_FILE}. Tables: {folder / TABLE_FILE}", soft_wrap=True)


if __name__ == "__main__":
    app()
