"""`nas-edit stats` and `nas-edit anchor`: measuring ahead of the first edit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from nas_plugin.cli.options import HPARAMS_FILE, MODEL, SET, settings_of

if TYPE_CHECKING:
    from nas_plugin.session import EditSession

_SHORT = 12
_JSON = typer.Option("--json", help="One JSON object, and nothing else, on standard output.")


def stats(
    hparams: Annotated[str, HPARAMS_FILE],
    model: Annotated[str | None, MODEL] = None,
    set: Annotated[list[str] | None, SET] = None,
    spectrum: Annotated[
        bool | None,
        typer.Option(help="Tell the condition of each matrix; by default only of what was measured just now."),
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Measure second moments and priors (AlphaEdit's projectors among them) ahead of the first edit, and keep them.

    What is in stats_dir already is found there, and nothing is measured.

    Example: nas-edit stats NAS-AlphaEdit/nas-demo --set stats_dir=stats
    """
    # Here and below, so that `nas-edit --help` does not wait for torch.
    from nas_plugin.ahead import statistics_ahead

    session = _session(hparams, model, set)
    kept = statistics_ahead(session, spectrum=spectrum)
    if not session.group.main:
        return
    moments = kept.moments
    spectra = {
        str(layer): {"condition": found.condition, "largest": found.largest, "smallest": found.smallest}
        for layer, found in kept.spectra.items()
    }
    told = {
        "measured": kept.measured,
        "file": None if kept.path is None else str(kept.path),
        "layers": sorted(moments.matrices),
        "tokens": moments.tokens,
        "provenance": dict(moments.provenance),
        "priors": {str(layer): str(path) for layer, path in kept.priors.items()},
        "spectrum": spectra,
    }
    if as_json:
        _say_json(told)
        return
    console = Console()
    where = told["file"] or "the .npz files of ROME, MEMIT or EasyEdit in stats_dir"
    said = "measured now" if kept.measured else "there already; nothing was measured"
    console.print(f"Second moments: {where} ({said})", soft_wrap=True, markup=False)
    console.print(_provenance(told), soft_wrap=True, markup=False)
    for layer, path in kept.priors.items():
        line = f"layer {layer}: {len(moments.matrices[layer])} directions"
        if (found := kept.spectra.get(layer)) is not None:
            line += f", condition {found.condition:.3g} ({found.largest:.3g} to {found.smallest:.3g})"
        console.print(f"{line}; prior {path.name}", soft_wrap=True, markup=False)


def anchor(
    hparams: Annotated[str, HPARAMS_FILE],
    model: Annotated[str | None, MODEL] = None,
    set: Annotated[list[str] | None, SET] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Measure the anchor on the unedited model, or show the one that is kept for it.

    It is kept in stats_dir, or in nas_anchor_file. One of other weights, such as those of an edited model, is refused.

    Example: nas-edit anchor NAS-MEMIT/nas-demo --set stats_dir=stats
    """
    from dataclasses import asdict

    from nas_plugin.ahead import anchor_ahead

    session = _session(hparams, model, set)
    kept = anchor_ahead(session)
    if not session.group.main:
        return
    found = kept.anchor
    told = {"measured": kept.measured, "file": None if kept.path is None else str(kept.path), **asdict(found)}
    if as_json:
        _say_json(told)
        return
    console = Console()
    console.print(f"Anchor: {found.value:.4f} ({'measured now' if kept.measured else 'read'}, mode {found.mode})")
    console.print(
        f"{found.pilots} pilots: mean {found.raw_mean:.4f}, without the largest 5 % {found.trimmed_mean:.4f}, standard "
        f"deviation {found.spread:.4f}",
        soft_wrap=True,
    )
    where = "nowhere: stats_dir and nas_anchor_file are null" if kept.path is None else str(kept.path)
    console.print(f"Kept: {where}", soft_wrap=True, markup=False)
    digests = {"model": found.model, "hyperparameters": found.hparams, "contexts": found.contexts}
    said = ", ".join(f"{name} {digest[:_SHORT]}" for name, digest in digests.items())
    console.print(f"layer {found.layer}, seed {found.seed}, {said}", soft_wrap=True)


def _session(hparams: str, model: str | None, settings: list[str] | None) -> EditSession:
    from nas_plugin.evaluation.runner.load import load_hparams, load_model, model_name
    from nas_plugin.session import EditSession

    named = {} if model is None else {"model_name": model_name(model)}
    # What is kept of edits is none of these commands' business.
    loaded = load_hparams(hparams, {**named, **settings_of(settings), "keep_dir": None})
    return EditSession(*load_model(loaded), loaded)


def _provenance(told: dict[str, Any]) -> str:
    provenance = told["provenance"]
    names = [f"{name} {provenance[name][:_SHORT]}" for name in ("model", "tokenizer", "text") if name in provenance]
    return ", ".join([f"{told['tokens']:,} tokens", *names])


def _say_json(told: dict[str, Any]) -> None:
    from nas_plugin.evaluation.runner.folder import plain

    typer.echo(json.dumps(plain(told), allow_nan=False))
