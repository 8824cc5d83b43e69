"""Second moments and anchor on disk: are they there, and are they this model's?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from nas_plugin.anchor import Anchor
from nas_plugin.anchoring import anchor_digest
from nas_plugin.doctor.finding import Finding, ok, problem, warning
from nas_plugin.errors import NasPluginError
from nas_plugin.hparams import DEMO_MODEL, NASHparams
from nas_plugin.locate.sequences import Locator
from nas_plugin.locate.stored import moments_path
from nas_plugin.model.editable import EditableModel

# Where a fingerprint goes in a path: the folder of a model's statistics ends with its first digits.
_ANY = "?" * 12
_UNSURE = "that it is of these weights is checked when it is used"


def statistics(em: EditableModel, hparams: NASHparams, fingerprint: str | None) -> Finding:
    """Look for second moments.

    Args:
        em: The model, with or without numbers.
        hparams: Hyperparameters.
        fingerprint: Of its weights; None if they were not loaded.

    Returns:
        The finding.
    """
    if hparams.stats_dir is None:
        says = "stats_dir is null: measured in every session, kept nowhere"
        if str(hparams.model_name) == DEMO_MODEL:
            return ok("statistics", f"{says}; seconds for the embedded model")
        return warning("statistics", says, "Set stats_dir; of a large model they take from minutes to hours.")
    found = _found(em, hparams, fingerprint)
    if not found:
        how = "nas-edit stats measures them ahead; else the first edit does."
        return warning("statistics", f"none in {hparams.stats_dir} for this model, text and layers", how)
    for path in found:
        wrong = _wrong(path, em)
        if wrong is not None:
            return problem("statistics", f"{path}: {wrong}", "Delete it; it will be measured again.")
    return ok("statistics", "; ".join(map(str, found)) + ("" if fingerprint else f" ({_UNSURE})"))


def anchor(em: EditableModel, tok: Any, hparams: NASHparams, fingerprint: str | None) -> Finding:
    """Look for the anchor.

    Args:
        em: The model, with or without numbers.
        tok: Its tokenizer.
        hparams: Hyperparameters, with `use_nas`.
        fingerprint: Of its weights; None if they were not loaded.

    Returns:
        The finding.
    """
    try:
        digest = anchor_digest(em, Locator(tok, em.max_positions, em.vocab_size), hparams)
    except NasPluginError as error:
        return problem("anchor", error.message, f"See {error.entry}.")
    if hparams.nas_anchor_file is not None:
        found = [path for path in (Path(hparams.nas_anchor_file),) if path.exists()]
    elif hparams.stats_dir is not None:
        folders = _folders(em, hparams, fingerprint)
        name = f"anchor-layer{em.value_layer}-{digest[:12]}-*.json"
        found = [path for folder in folders for path in sorted(folder.glob(name))]
    else:
        return ok("anchor", "kept nowhere: measured in every session")
    if not found:
        return warning("anchor", "not measured yet", "nas-edit anchor measures it ahead; else the first edit does.")
    try:
        read = [Anchor.load(path) for path in found]
        for one in read:
            one.check(fingerprint or one.model, em.value_layer, digest)
    except NasPluginError as error:
        return problem("anchor", error.message, "Delete the file, or set nas_anchor_file to null.")
    said = "; ".join(f"{one.value:.4f} in {path}" for one, path in zip(read, found, strict=True))
    return ok("anchor", said + ("" if fingerprint else f" ({_UNSURE})"))


def _found(em: EditableModel, hparams: NASHparams, fingerprint: str | None) -> list[Path]:
    name = moments_path(em, hparams, _ANY).name
    return [path for folder in _folders(em, hparams, fingerprint) if (path := folder / name).exists()]


def _folders(em: EditableModel, hparams: NASHparams, fingerprint: str | None) -> list[Path]:
    """List the folders of statistics for a model of this name; for these weights alone if they are known."""
    if fingerprint is not None:
        return [moments_path(em, hparams, fingerprint).parent]
    pattern = moments_path(em, hparams, _ANY).parent
    return sorted(path for path in pattern.parent.glob(pattern.name) if path.is_dir())


def _wrong(path: Path, em: EditableModel) -> str | None:
    """Say what is wrong with a file, from its header alone; None if nothing is."""
    try:
        with safe_open(str(path), framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    except (OSError, SafetensorError) as error:
        return f"it cannot be read ({str(error)[:100]})"
    for layer in em.layers:
        width = em.matrix(layer).shape[1]
        if shapes.get(f"layer.{layer}") != [width, width]:
            return f"it has no {width} x {width} second moments of layer {layer}"
    return None
