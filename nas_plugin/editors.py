"""The editors of a session's layers, and their priors on disk.

Factorising a second moment takes minutes at the width of a large model, reading the result seconds.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas_plugin.errors import StatisticsError
from nas_plugin.files import read_tensors, write_tensors
from nas_plugin.write import METHODS
from nas_plugin.write.editor import LayerEditor

logger = logging.getLogger(__name__)

_FORMAT = "nas-plugin-prior-1"


def make_editors(
    hparams: Any, moments: Mapping[int, Tensor], base: Mapping[int, Tensor], folder: Path | None, *, keep: bool = True
) -> dict[int, LayerEditor]:
    """Make one editor per layer.

    Args:
        hparams: Hyperparameters of one of the six methods.
        moments: Layer -> C `(d_in, d_in)`.
        base: Layer -> W before the first edit, `(d_out, d_in)`.
        folder: Where priors are kept; None makes them and keeps none.
        keep: Keep there what had to be made; False only reads.

    Returns:
        Layer -> editor.
    """
    method, editors = METHODS[hparams.method], {}
    for layer, w0 in base.items():
        moment = moments[layer]
        prior = None
        if folder is not None:
            path = prior_path(folder, layer, method.prior_name(hparams), moment)
            prior = kept_prior(path, len(moment), partial(_made, method, moment, w0.device, hparams), keep=keep)
        editors[layer] = method(w0, moment, hparams, prior)
    return editors


def _made(method: type[LayerEditor], moment: Tensor, device: torch.device, hparams: Any) -> Tensor:
    return method.prior(moment.to(device, torch.float64), hparams)


def prior_path(folder: Path, layer: int, name: str, moment: Tensor) -> Path:
    """Return where the prior of a layer is kept: the name says which moment it was made of, and with which numbers.

    Args:
        folder: Folder of the model's statistics.
        layer: Edited layer.
        name: `LayerEditor.prior_name`.
        moment: C `(d_in, d_in)`.

    Returns:
        The file; it need not exist.
    """
    content = moment.detach().to("cpu").contiguous().view(torch.uint8).numpy()
    digest = hashlib.sha256(content.data).hexdigest()
    return folder / f"prior-layer{layer}-{name}-{digest[:16]}.safetensors"


def kept_prior(path: Path, width: int, make: Callable[[], Tensor], *, keep: bool = True) -> Tensor:
    """Read a prior, or make it and keep it; `8 width^2` bytes.

    Args:
        path: Where it is kept.
        width: d_in.
        make: Makes it, `(width, width)` float64.
        keep: Keep what was made.

    Returns:
        The prior, on the CPU if it was read.

    Raises:
        StatisticsError: The file is damaged.
    """
    if not path.exists():
        prior = make()
        if not keep:
            return prior
        write_tensors(path, {"prior": prior}, {"format": _FORMAT})
        logger.info("prior stored in %s", path)
        return prior
    try:
        metadata, tensors = read_tensors(path, "prior")
    except (OSError, ValueError) as error:
        raise StatisticsError(f"cannot read the prior {path}: {error}. Delete it; it will be made again.") from error
    read = tensors["prior"]
    if metadata.get("format") != _FORMAT or read.shape != (width, width) or read.dtype != torch.float64:
        raise StatisticsError(
            f"{path} does not hold a float64 prior of width {width}. Delete it; it will be made again."
        )
    return read
