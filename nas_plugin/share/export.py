"""Exporting: one source, three forms, each a folder with a model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_plugin.errors import AdapterError, ExportError
from nas_plugin.files import write_bytes
from nas_plugin.keep.edits import Held, write_edits
from nas_plugin.keep.factored import Factored, factored
from nas_plugin.model.adapters import adapted_modules, unwrapped
from nas_plugin.progress import progress_bar
from nas_plugin.reading import short
from nas_plugin.share.apply import EDITS, EDITS_FILE, LORA, Applied
from nas_plugin.share.card import CARD_FILE, card, public_name
from nas_plugin.share.folder import check_free, new_folder
from nas_plugin.share.lora import write_adapter
from nas_plugin.share.lowrank import LowRank, low_rank
from nas_plugin.share.source import Change, Source, name_of, of_session

if TYPE_CHECKING:
    from nas_plugin.session import EditSession

FULL = "full"
FORMS = (FULL, EDITS, LORA)
_WHOLE = "The whole model. Its edited parameters are bit for bit those that were edited; all others are the base's."


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        folder: The folder.
        form: "full", "edits" or "lora".
        bytes: Size of its files.
        exact: Loading it gives the edited parameters bit for bit; not promised for an adapter.
        ranks: Rank of the factors, by parameter; those that are written whole are missing.
        share: How much of the change was written, |A|^2 / |change|^2 over all matrices.
        shares: The same by parameter.
    """

    folder: Path
    form: str
    bytes: int
    exact: bool
    ranks: Mapping[str, int] = field(default_factory=dict)
    share: float = 1.0
    shares: Mapping[str, float] = field(default_factory=dict)


def export_edits(
    session: EditSession | Source,
    folder: str | Path,
    to: str = FULL,
    *,
    rank: int | None = None,
    base: str | None = None,
    scores: Mapping[str, float] | None = None,
    progress: bool = True,
) -> Exported:
    """Write an edited model for others, with a model card.

    Args:
        session: A session, or what `kept_edits` found in a folder.
        folder: Folder to make; what is in it afterwards is there as a whole or not at all.
        to: "full": the model and its tokenizer, as `save_pretrained` writes them. "edits": `edits.safetensors`, each edited
            matrix whole or as factors that give every bit of it, whichever is smaller. "lora": an adapter for PEFT.
        rank: Largest rank of an adapter; by default that of the change.
        base: Name of the unedited model for the card; by default what its configuration says.
        scores: What was measured, for the card.
        progress: Show a progress bar.

    Returns:
        What was written.

    Raises:
        ExportError: There is no such form, or the folder is not empty or cannot be written.
        EditsError: The edited weights are not what the session wrote last.
        AdapterError: A whole model is asked for that carries an unmerged adapter.
    """
    folder = Path(folder)
    check_asked(folder, to, rank)
    source = session if isinstance(session, Source) else of_session(session)
    source = replace(
        source, base=source.base if base is None else base, scores=source.scores if scores is None else scores
    )
    with new_folder(folder) as temporary:
        if to == FULL:
            done = _full(source, temporary, _WHOLE)
        elif to == EDITS:
            done = _edits(source, temporary, progress)
        else:
            done = _lora(source, temporary, rank, progress)
    return _in(folder, done)


def check_asked(folder: Path, to: str, rank: int | None) -> None:
    """Refuse an export that cannot be made, before anything is loaded for it.

    Args:
        folder: Folder to make.
        to: Form.
        rank: Largest rank of an adapter.

    Raises:
        ExportError: There is no such form, it has no rank, or the folder is taken.
    """
    if to not in FORMS:
        raise ExportError(f"there is no export to {short(to)}; choose one of {', '.join(FORMS)}.")
    if rank is not None and (to != LORA or rank < 1):
        raise ExportError(f"a rank of {rank} for {to!r}: a rank from 1 up is for to='lora' (--to lora) only.")
    check_free(folder)


def export_applied(model: Any, tok: Any, applied: Applied, folder: str | Path) -> Exported:
    """Write a model that exported edits were put into, with a model card.

    Args:
        model: The model, after `apply_edits`.
        tok: Its tokenizer; None leaves it out.
        applied: What `apply_edits` returned.
        folder: Folder to make.

    Returns:
        What was written.

    Raises:
        ExportError: The folder is not empty or cannot be written.
        AdapterError: The model carries an unmerged adapter.
    """
    about = replace(applied.about, weights=applied.weights)
    source = Source(model, tok, (), about, name_of(model))
    text = _WHOLE
    if not applied.exact:
        text = (
            "The whole model, a LoRA adapter merged into it: its edited parameters are those of the edited model but for "
            f"rounding and for what the adapter had left out (kept energy {applied.share:.9f})."
        )
    with new_folder(Path(folder)) as temporary:
        done = replace(_full(source, temporary, text), exact=applied.exact)
    return _in(Path(folder), done)


def _in(folder: Path, done: Exported) -> Exported:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return replace(done, folder=folder, bytes=size)


def _full(source: Source, folder: Path, text: str) -> Exported:
    model = unwrapped(source.model)
    adapted = adapted_modules(model)
    if adapted:
        raise AdapterError(
            f"the model carries an unmerged PEFT adapter (on {len(adapted)} modules, the first {adapted[0]!r}), which a folder "
            "of a whole model has no place for; merge it first (model.merge_and_unload(), then edit), or "
            "export 'edits' or 'lora'."
        )
    model.save_pretrained(folder)
    if source.tok is not None:
        source.tok.save_pretrained(folder)
    _write_card(folder, card(source, FULL, text))
    return Exported(folder, FULL, 0, exact=True)


def _edits(source: Source, folder: Path, progress: bool) -> Exported:
    held: dict[str, Held] = {}
    with progress_bar("factors", len(source.changes), progress) as bar:
        for change in source.changes:
            wanted = change.stored(change.after)
            held[change.name] = _factored(change) or wanted
            bar.advance(bar.task_ids[0])
    ranks = {name: one.rank for name, one in held.items() if isinstance(one, Factored)}
    about = replace(source.about, factored=tuple(sorted(ranks)))
    write_edits(folder / EDITS_FILE, held, about)
    text = (
        "The edited parameters alone. Loaded onto the base they are bit for bit those that were edited, so logits are the same; "
        "a model that is not the base is refused."
    )
    forms = ", ".join(f"{name}: {_form(ranks.get(name))}" for name in held)
    _write_card(folder, card(source, EDITS, text, [("stored as", forms), *_carried(source)]))
    return Exported(folder, EDITS, 0, exact=True, ranks=ranks)


def _factored(change: Change) -> Factored | None:
    """Return exact factors, None where the matrix itself is smaller."""
    found = low_rank(change.before, change.after)
    left, right = (found.right.T, found.left.T) if change.turned else (found.left, found.right)
    return factored(left, right, change.stored(change.before), change.stored(change.after))


def _form(rank: int | None) -> str:
    return "the whole matrix" if rank is None else f"factors of rank {rank}"


def _lora(source: Source, folder: Path, rank: int | None, progress: bool) -> Exported:
    changes: dict[str, LowRank] = {}
    whole: dict[str, int] = {}
    with progress_bar("factors", len(source.changes), progress) as bar:
        for change in source.changes:
            found = low_rank(change.before, change.after)
            whole[change.name] = found.rank
            changes[change.name] = found if rank is None else found.truncated(rank)
            bar.advance(bar.task_ids[0])
    energy, kept = (sum(getattr(one, name) for one in changes.values()) for name in ("energy", "kept"))
    share = min(kept / energy, 1.0) if energy else 1.0
    write_adapter(folder, source, changes, share, public_name(source.base))
    ranks = {name: one.rank for name, one in changes.items()}
    cut = [name for name, number in ranks.items() if number < whole[name]]
    text = (
        f"A LoRA adapter, scaling 1. {_said(cut, ranks, whole)} Kept energy, |B A|^2 / |change|^2: {share:.9f}. "
        "Its sums are rounded otherwise than the edited weights, so logits are near those of the edited model, not the same."
    )
    rows = [
        ("rank, of", ", ".join(f"{name}: {ranks[name]} of {whole[name]}" for name in ranks)),
        ("kept energy", ", ".join(f"{name}: {one.share:.9f}" for name, one in changes.items())),
        *_carried(source),
    ]
    _write_card(folder, card(source, LORA, text, rows))
    return Exported(folder, LORA, 0, False, ranks, share, {name: one.share for name, one in changes.items()})


def _said(cut: list[str], ranks: Mapping[str, int], whole: Mapping[str, int]) -> str:
    if not cut:
        return "It has the whole rank of the change."
    return (
        f"It is the nearest of rank {max(ranks.values())} to a change of rank {max(whole.values())} (truncated SVD): what is cut "
        "off is lost."
    )


def _carried(source: Source) -> list[tuple[str, str]]:
    """Say if the base is a model with an adapter."""
    adapted = adapted_modules(source.model)
    return [("the base carries an adapter on", ", ".join(adapted))] if adapted else []


def _write_card(folder: Path, text: str) -> None:
    write_bytes(folder / CARD_FILE, text.encode("utf-8", "replace"))
