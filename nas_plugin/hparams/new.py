"""Hyperparameter files for a model that has none, from its configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from nas_plugin.errors import HparamsError
from nas_plugin.hparams.files import put, refuse_existing
from nas_plugin.hparams.render import EDIT_BEHIND_NORM, METHODS, TOKENS_PER_DIM, Recipe, early_layers, render

_LONGEST_NAME = 100


def new_hparams(
    model: str,
    folder: str | os.PathLike[str],
    *,
    methods: Sequence[str] = tuple(METHODS),
    layers: Sequence[int] | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Write files for a model from its configuration: modules as they are found in it, layers by depth, numbers of Llama 3 8B.

    Nothing is loaded but the configuration. The files are marked untested.

    Args:
        model: Folder, hub name, or a `config.json`.
        folder: Where to write; each method gets a folder of its own in it, as `NAS-MEMIT/`.
        methods: Editors, with or without `NAS-`.
        layers: Blocks to edit; by default early ones, see `early_layers`.
        name: Name of the files; by default the last part of the model's.
        overwrite: Replace files that are there.

    Returns:
        The files written.

    Raises:
        HparamsError: A method or layer does not exist, or a file is there.
        ModelError: The model has no readable configuration, is of another kind, or is built in another way.
    """
    wanted = [method.removeprefix("NAS-") for method in methods]
    unknown = [method for method in wanted if method not in METHODS]
    if unknown or not wanted:
        raise HparamsError(f"no method {', '.join(unknown) or 'given'}; there are {', '.join(METHODS)}.")
    # Here, because it imports torch.
    from nas_plugin.model.recognise import recognise

    found = recognise(model)
    chosen = early_layers(found.blocks) if layers is None else sorted(set(layers))
    if not chosen or chosen[0] < 0 or chosen[-1] >= found.blocks:
        raise HparamsError(f"layers {list(chosen)}: {model} has blocks 0 to {found.blocks - 1}.")
    path = Path(model)
    model_name = str(path.parent) if path.suffix == ".json" else model
    edit = EDIT_BEHIND_NORM if found.mlp_norm else {}
    recipe = Recipe(model_name, found.blocks, chosen, found.modules, edit, TOKENS_PER_DIM)
    source = [
        f"{'layers by depth' if layers is None else 'layers as asked for'}, numbers of Llama 3 8B"
        + (" but clamp and learning rate, which are ROME's: a norm stands behind the MLP." if found.mlp_norm else "."),
        f"Modules: {'of the family' if found.known else 'found in the module tree; the family is'} {found.family}"
        + ("." if found.known else " and not in the table: the model is tried out before the first edit."),
    ]
    stem = name or _stem(Path(model_name).name)
    texts = {Path(folder) / f"NAS-{m}" / f"{stem}.yaml": render(recipe, m, "untested", source) for m in wanted}
    # All of them before the first is written.
    for path in () if overwrite else texts:
        refuse_existing(path)
    for path, text in texts.items():
        put(path, text.encode(), overwrite=overwrite)
    return tuple(texts)


def _stem(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:_LONGEST_NAME] or "model"
