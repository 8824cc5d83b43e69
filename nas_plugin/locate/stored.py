"""Finding statistics on disk: our own safetensors files, and the `.npz` files of ROME, MEMIT and EasyEdit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nas_plugin.locate.collecting import collect_moments
from nas_plugin.locate.kept_sums import KeptSums, OtherTextError
from nas_plugin.locate.moments import SecondMoments
from nas_plugin.locate.npz import read_npz
from nas_plugin.locate.sequences import Locator
from nas_plugin.locate.texts import texts_of
from nas_plugin.model.editable import EditableModel
from nas_plugin.parallel import ALONE, Group
from nas_plugin.reading import file_name, is_file_name

logger = logging.getLogger(__name__)

_DTYPES = {"float16": torch.float32, "float32": torch.float32, "float64": torch.float64}


def moments_for(
    em: EditableModel,
    locator: Locator,
    hparams: Any,
    fingerprint: str,
    *,
    texts: Sequence[str] | None = None,
    progress: bool = True,
    group: Group = ALONE,
) -> SecondMoments:
    """Return the second moments of all edited layers: from disk if they are there, else collected and stored.

    Looked up under `stats_dir`, in this order: this package's file for exactly these weights; an `.npz` of ROME, MEMIT or
    EasyEdit under the model's name (which says nothing about its weights, hence a warning). Without `stats_dir` nothing is
    read or written. With it a pass over the text that was interrupted goes on; see `KeptSums`.

    Args:
        em: The model, unedited.
        locator: Tokenises the text.
        hparams: Hyperparameters with `stats_dir` and the `mom2_*` fields.
        fingerprint: The model's weights fingerprint.
        texts: Text to use instead of `mom2_dataset`; never stored.
        progress: Show a progress bar.
        group: Processes that share the work; the first one writes the file.

    Returns:
        The statistics, checked against the model.
    """
    path = None if texts is not None or hparams.stats_dir is None else moments_path(em, hparams, fingerprint)
    moments = None
    if path is not None:
        # Files may be on some machines of a launch only; all read them, or none.
        moments = SecondMoments.load(path) if group.all(path.exists()) else _from_npz(em, hparams)
        moments = moments if group.all(moments is not None) else None
    if moments is None:
        logger.info("collecting second moments of layers %s over %s", list(em.layers), hparams.mom2_dataset)
        kept = None if path is None else KeptSums(path.with_suffix(".sums"), group)
        collect = partial(
            collect_moments,
            em,
            locator,
            max_documents=hparams.mom2_n_samples,
            max_tokens=tokens_wanted(em, hparams),
            dtype=_DTYPES[hparams.mom2_dtype],
            fingerprint=fingerprint,
            progress=progress,
            group=group,
            kept=kept,
        )
        source = texts if texts is not None else hparams.mom2_dataset
        try:
            moments = collect(texts=texts_of(source))
        except OtherTextError:
            logger.warning("the text is not the one that an interrupted pass began with: collecting anew")
            if kept is not None:
                kept.remove()
            moments = collect(texts=texts_of(source))
        if path is not None and group.main:
            moments.save(path)
            logger.info("second moments stored in %s", path)
        group.wait()
        if kept is not None:
            kept.remove()
    moments.check(em, fingerprint, locator.tok)
    return moments


def tokens_wanted(em: EditableModel, hparams: Any) -> int | None:
    """Return after how many tokens of text to stop, None for no limit but `mom2_n_samples` documents.

    Args:
        em: The model.
        hparams: Hyperparameters with `mom2_n_tokens` and `mom2_tokens_per_dim`, one of them None.

    Returns:
        The number; of several widths the largest decides.
    """
    if hparams.mom2_tokens_per_dim is None:
        tokens: int | None = hparams.mom2_n_tokens
        return tokens
    return int(hparams.mom2_tokens_per_dim) * max(em.matrix(layer).shape[1] for layer in em.layers)


def _model_name(em: EditableModel) -> str:
    return str(getattr(em.config, "_name_or_path", "") or em.config.model_type)


def statistics_folder(em: EditableModel, hparams: Any, fingerprint: str) -> Path:
    """Return the folder under `stats_dir` for exactly these weights.

    Args:
        em: The model.
        hparams: Hyperparameters with `stats_dir`.
        fingerprint: The model's weights fingerprint.

    Returns:
        The folder; it need not exist.
    """
    name = Path(_model_name(em)).name or "model"
    return Path(hparams.stats_dir) / f"{file_name(name)}-{fingerprint[:12]}"


def moments_path(em: EditableModel, hparams: Any, fingerprint: str) -> Path:
    """Return this package's file of second moments for exactly these weights; see `statistics_folder`."""
    # The folder of a pattern: its last part is the same for many.
    parts = Path(str(hparams.mom2_dataset)).parts[-2 if "*" in str(hparams.mom2_dataset) else -1 :]
    dataset = file_name("-".join(parts))
    wanted = tokens_wanted(em, hparams)
    tokens = f"t{wanted}" if wanted is not None else f"d{hparams.mom2_n_samples}"
    layers = "-".join(map(str, em.layers))
    # Of a large model all layers have a hundred names, which make too long a one.
    name = file_name(f"{dataset}-{tokens}-{hparams.mom2_dtype}-layers{layers}")
    return statistics_folder(em, hparams, fingerprint) / f"{name}.safetensors"


def _from_npz(em: EditableModel, hparams: Any) -> SecondMoments | None:
    """Read one `.npz` a layer if all are there; None if not."""
    name = _model_name(em)
    # The names are not ours to change; one that would lead out of the folder is none that ROME, MEMIT or EasyEdit wrote.
    models = [part for part in (Path(name).name, name.replace("/", "_")) if is_file_name(part)]
    dataset = f"{hparams.mom2_dataset}_stats"
    stem = f"{hparams.mom2_dtype}_mom2_{hparams.mom2_n_samples}"
    found: dict[int, Path] = {}
    for layer in em.layers:
        array = f"{em.paths.rewrite.format(layer)}_{stem}.npz"
        for model in models if is_file_name(dataset) and is_file_name(array) else ():
            file = Path(hparams.stats_dir) / model / dataset / array
            if file.is_file():
                found[layer] = file
    if len(found) < len(em.layers):
        if found:
            logger.warning(
                "found .npz statistics for layers %s only, need %s: collecting all anew", sorted(found), list(em.layers)
            )
        return None
    logger.warning("using .npz statistics under %s; such files do not say which weights they are of", hparams.stats_dir)
    read = {layer: read_npz(path) for layer, path in found.items()}
    return SecondMoments(
        {layer: matrix for layer, (matrix, _) in read.items()}, min(count for _, count in read.values())
    )
