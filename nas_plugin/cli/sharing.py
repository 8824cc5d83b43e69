"""`nas-edit export` and `nas-edit apply`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from nas_plugin.cli.options import SET, settings_of

if TYPE_CHECKING:
    from nas_plugin.session import EditSession
    from nas_plugin.share.export import Exported
    from nas_plugin.share.source import Source

_MODEL = "The unedited model: its folder or name, or 'demo'"
_HUB = "Hugging Face Hub"


class Form(str, Enum):
    """What an export may be."""

    FULL = "full"
    EDITS = "edits"
    LORA = "lora"


def export(
    folder: Annotated[
        Path, typer.Argument(help="Folder that a session was kept in (keep_dir), or that nas-edit run wrote.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    model: Annotated[str | None, typer.Option(help=f"{_MODEL}; by default what the folder says.")] = None,
    to: Annotated[
        Form, typer.Option(help="The whole model, the edited parameters alone, or a LoRA adapter for PEFT.")
    ] = Form.FULL,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Largest rank of the adapter; by default that of the change.")
    ] = None,
    set: Annotated[list[str] | None, SET] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload it there, too.", rich_help_panel=_HUB)
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public.", rich_help_panel=_HUB)
    ] = False,
) -> None:
    """Write an edited model for others: as a whole, its edits alone, or as a LoRA adapter, with a model card.

    Example: nas-edit export nas-run --to edits --out shared
    """
    # Here and below, so that `nas-edit --help` does not wait for torch.
    from nas_plugin.share.export import check_asked, export_edits
    from nas_plugin.share.hub import push_to_hub

    check_asked(out, to.value, rank)
    console = Console()
    done = export_edits(_source(folder, model, set), out, to.value, rank=rank, base=_public(model))
    console.print(_said(done), soft_wrap=True, markup=False, highlight=False)
    if push is not None:
        console.print(f"On the Hub: {push_to_hub(out, push, private=not public)}", soft_wrap=True, markup=False)


def apply(
    edits: Annotated[
        Path, typer.Argument(help="edits.safetensors, adapter_model.safetensors, or the folder with one.")
    ],
    model: Annotated[str, typer.Option(help=f"{_MODEL}.")],
    out: Annotated[Path, typer.Option(help="Folder for the edited model.")],
) -> None:
    """Put exported edits into the model that they were made on, check them, and save the whole.

    Another model than that is refused. An adapter is merged into the weights.

    Example: nas-edit apply shared --model demo --out edited
    """
    from nas_plugin.share.apply import about, apply_edits
    from nas_plugin.share.base import in_dtype_of, load_base
    from nas_plugin.share.export import export_applied
    from nas_plugin.share.folder import check_free

    check_free(out)
    said = about(edits)
    base, tok = load_base(model)
    in_dtype_of(base, said.base)
    applied = apply_edits(base, edits)
    done = export_applied(base, tok, applied, out)
    exact = "bit for bit those that were exported" if applied.exact else "those that were exported but for rounding"
    if applied.share < 1 - 1e-9:
        exact = f"those of a cut adapter ({100 * applied.share:.4f} % of the change)"
    Console().print(
        f"{said.edits} edits with {_label(said)} are in {done.folder} ({_size(done.bytes)}); {len(said.parameters)} edited "
        "parameters, "
        f"{exact}.",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


def _source(folder: Path, model: str | None, settings: list[str] | None) -> Source | EditSession:
    """Find what is to be exported: in the folder, or by carrying its last edits out again."""
    from nas_plugin.keep.reopen import reopen
    from nas_plugin.share.base import load_base
    from nas_plugin.share.kept import holds_its_end, kept_edits, model_of

    if not holds_its_end(folder):
        return reopen(folder, model=model, settings=settings_of(settings))
    return kept_edits(folder, *load_base(model or model_of(folder)))


def _public(model: str | None) -> str | None:
    """A name on the command line says more than what the model's files may."""
    from nas_plugin.evaluation.runner.load import model_name

    return None if model is None else model_name(model)


def _said(done: Exported) -> str:
    """Say what was written."""
    said = f"{done.folder} ({_size(done.bytes)}): "
    if done.form == Form.FULL.value:
        return said + "the whole model."
    ranks = ", ".join(f"{name} rank {rank}" for name, rank in done.ranks.items())
    if done.form == Form.EDITS.value:
        return said + f"the edited parameters, bit for bit; {f'as factors: {ranks}' if ranks else 'as whole matrices'}."
    return said + f"a LoRA adapter: {ranks}; kept energy {100 * done.share:.6f} %."


def _label(about: Any) -> str:
    return f"NAS-{about.method}" if about.use_nas else str(about.method)


def _size(number: int) -> str:
    return f"{number / 1e6:.3g} MB" if number >= 1e6 else f"{number / 1e3:.3g} kB"
