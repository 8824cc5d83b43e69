"""`nas-edit tune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from nas_plugin.cli.options import HPARAMS_FILE, MODEL, SET, STREAM, numbers, settings_of
from nas_plugin.errors import HparamsError, RunError

if TYPE_CHECKING:
    from nas_plugin.evaluation.tuning import Trial

_WIDE = 120
_PARTS = ("efficacy", "generalization", "specificity", "score")


def tune(
    hparams: Annotated[str, HPARAMS_FILE],
    stream: Annotated[str, STREAM] = "demo",
    edits: Annotated[int, typer.Option(min=1, help="Cases of it that every trial writes.")] = 20,
    per_step: Annotated[int, typer.Option(min=1, help="Cases written at once.")] = 1,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help="Layers to try, as 4,5,6; several times. By default bands as long as the file's, early and later."
        ),
    ] = None,
    v_lr: Annotated[
        str | None,
        typer.Option("--v-lr", help="Learning rates to try, as 0.1,0.5; by default the file's, half and twice."),
    ] = None,
    clamp: Annotated[
        str | None, typer.Option(help="Values of clamp_norm_factor to try, as 0.75,4; by default none but the file's.")
    ] = None,
    model: Annotated[str | None, MODEL] = None,
    set: Annotated[list[str] | None, SET] = None,
    out: Annotated[Path, typer.Option(help="Hyperparameter file to write the best into.")] = Path("tuned.yaml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Pick edited layers and learning rate on a small sample, show what was tried, and write the best as a file.

    Layers are tried first, then learning rates on the best layers, then clamps. Every trial writes the same short stream into the
    unedited model. Scores are those of nas-edit run, after the whole stream; of equal ones the smaller weights win.

    Example: nas-edit tune NAS-MEMIT/nas-demo --stream demo --edits 10 --out tuned.yaml
    """
    # Here, so that `nas-edit --help` does not wait for torch.
    from nas_plugin.evaluation.runner.load import load_hparams, load_model, model_name
    from nas_plugin.evaluation.streams import load_stream
    from nas_plugin.evaluation.tuning import tune as try_all
    from nas_plugin.evaluation.tuning import write_tuned

    _check_new(out, overwrite)
    named = {} if model is None else {"model_name": model_name(model)}
    loaded = load_hparams(hparams, {**named, **settings_of(set)})
    bands = None if layers is None else [numbers(band, "--layers") for band in layers]
    rates = None if v_lr is None else _decimals(v_lr, "--v-lr")
    clamps = () if clamp is None else _decimals(clamp, "--clamp")
    read = load_stream(stream, limit=edits)
    console, told = Console(), Console(stderr=True)

    def tell(trial: Trial) -> None:
        told.print(_line(trial), soft_wrap=True, markup=False, highlight=False)

    trials = try_all(
        *load_model(loaded), loaded, read.cases, layers=bands, v_lrs=rates, clamps=clamps, per_step=per_step, tell=tell
    )
    if not console.is_terminal:
        console = Console(width=max(console.width, _WIDE))
    console.print(_table(trials))
    if trials[0].failed is not None:
        _nothing_worked(trials[0])
    source = f"tuned on {len(read.cases)} cases of {read.name} from {hparams}, the best of {len(trials)} trials."
    write_tuned(out, loaded, trials[0], source=source, overwrite=overwrite)
    console.print(f"Best: {out}", soft_wrap=True, markup=False)


def _check_new(out: Path, overwrite: bool) -> None:
    """Refuse to write over a file, before anything is tried.

    Raises:
        HparamsError: There is one.
    """
    if out.exists() and not overwrite:
        raise HparamsError(f"{out} exists; give another name (--out), or --overwrite.")


def _nothing_worked(trial: Trial) -> None:
    """Say that no trial wrote anything.

    Raises:
        RunError: Always.
    """
    raise RunError(f"no trial could write anything, and so there is no best one; the first failed: {trial.failed}")


def _decimals(text: str, option: str) -> list[float]:
    """Read numbers with commas between them.

    Args:
        text: As it was typed.
        option: The option's name, for messages.

    Returns:
        The numbers.

    Raises:
        RunError: Something is none.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise RunError(f"{option} {text}: give numbers with commas, as 0.1,0.5.") from error


def _line(trial: Trial) -> str:
    result = f"score {_percent(trial, 'score')}" if trial.failed is None else f"failed: {trial.failed}"
    return f"layers {_layers(trial.layers)}, v_lr {trial.v_lr:g}, clamp {trial.clamp_norm_factor:g}: {result}"


def _table(trials: Sequence[Trial]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("layers", "v_lr", "clamp", *_PARTS, "|W|/|W0|", "rejected", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, trial in enumerate(trials):
        numbers_ = (_layers(trial.layers), f"{trial.v_lr:g}", f"{trial.clamp_norm_factor:g}")
        scores = [_percent(trial, part) if trial.failed is None else "failed" for part in _PARTS]
        rest = (f"{trial.norm:.3f}", str(trial.rejected), f"{trial.seconds:.1f}")
        table.add_row(*numbers_, *scores, *rest, style="bold" if number == 0 else None)
    return table


def _layers(layers: Sequence[int]) -> str:
    one_after_another = list(layers) == list(range(layers[0], layers[0] + len(layers)))
    return f"{layers[0]}-{layers[-1]}" if len(layers) > 1 and one_after_another else ",".join(map(str, layers))


def _percent(trial: Trial, part: str) -> str:
    return f"{trial.parts[part]:.1f}" if part in trial.parts else "–"
