"""Second moments C = E[k kᵀ] of what goes into the rewrite modules, uncentred, on text the model should keep.

Source: MEMIT (Meng et al., 2023), Eq. 15; the estimator is the one of its released `layer_stats`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas_plugin.errors import NonFiniteError, StatisticsError
from nas_plugin.files import read_tensors, write_tensors
from nas_plugin.model.editable import EditableModel

_FORMAT = "nas-plugin-second-moments-1"
_LAYER, _COUNT = re.compile(r"layer\.(0|[1-9][0-9]{0,8})"), re.compile(r"[0-9]{1,18}")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# By key of the provenance, in the order in which they are compared.
_OF_ANOTHER = {
    "tokenizer": "another tokenizer (vocabulary {}, this one {})",
    "module": "another module ({}, these hyperparameters edit {})",
    "weights": "the model in another number type ({}, here {})",
    "model": "another model (weights {}, this model {})",
}


@dataclass(frozen=True)
class SecondMoments:
    """Second moments by layer, with where they come from.

    Attributes:
        matrices: Layer -> C `(d_in, d_in)`, a mean over tokens.
        tokens: Number of tokens averaged over; 0 if unknown.
        provenance: Fingerprints of model, tokenizer and text, dtype and counts; empty for matrices given as they are.
    """

    matrices: Mapping[int, Tensor]
    tokens: int = 0
    provenance: Mapping[str, str] = field(default_factory=dict)

    def check(self, em: EditableModel, fingerprint: str, tok: Any = None) -> None:
        """Refuse statistics that cannot be of this model.

        Args:
            em: Model to be edited.
            fingerprint: Its weights' fingerprint before the first edit.
            tok: Its tokenizer; None compares none.

        Raises:
            StatisticsError: A layer is missing, of another width, asymmetric, or of another module; or fingerprints say that the
                statistics are of other weights, of the same in another number type, or of another tokenizer.
            NonFiniteError: A matrix holds NaN or infinity.
        """
        self._check_origin(em, fingerprint, tok)
        for layer in em.layers:
            width = em.matrix(layer).shape[1]
            matrix = self.matrices.get(layer)
            if matrix is None:
                raise StatisticsError(
                    f"no second moments for layer {layer} (there are {sorted(self.matrices)}); "
                    "collect them for all edited layers."
                )
            if tuple(matrix.shape) != (width, width):
                raise StatisticsError(
                    f"second moments of layer {layer} are {tuple(matrix.shape)}; this model needs "
                    f"({width}, {width}): they are of another model."
                )
            if not bool(torch.isfinite(matrix).all()):
                raise NonFiniteError(f"second moments of layer {layer} hold NaN or infinity; collect them again.")
            if not torch.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-6 * float(matrix.abs().max())):
                raise StatisticsError(
                    f"second moments of layer {layer} are not symmetric; the file is damaged or holds something else."
                )

    def _check_origin(self, em: EditableModel, fingerprint: str, tok: Any) -> None:
        """Compare what the statistics say of themselves with the model at hand."""
        here = {"weights": dtype_name(em.dtype), "module": em.paths.rewrite, "model": fingerprint}
        if tok is not None and "tokenizer" in self.provenance:
            here["tokenizer"] = tokenizer_fingerprint(tok)
        for key, wrong in _OF_ANOTHER.items():
            given, mine = self.provenance.get(key), here.get(key)
            if given is not None and mine is not None and given != mine:
                shown = (text if key in ("weights", "module") else text[:12] for text in (given, mine))
                raise StatisticsError(
                    f"these second moments are of {wrong.format(*shown)}; collect them again on this model before its first edit."
                )
        told = self.provenance.get("dtype")
        held = {dtype_name(matrix.dtype) for matrix in self.matrices.values()}
        if told is not None and held - {told}:
            raise StatisticsError(
                f"these second moments say that they are {told} and hold {', '.join(sorted(held))}; the file was changed. "
                "Collect them again."
            )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with the provenance in its header.

        Args:
            path: File to write.
        """
        metadata = {**self.provenance, "format": _FORMAT, "tokens": str(self.tokens)}
        write_tensors(Path(path), {f"layer.{layer}": matrix for layer, matrix in self.matrices.items()}, metadata)

    @classmethod
    def load(cls, path: str | Path) -> SecondMoments:
        """Read a file written by `save`.

        Args:
            path: File to read.

        Returns:
            The statistics; call `check` against a model before use.

        Raises:
            StatisticsError: The file is not such a file.
        """
        try:
            metadata, tensors = read_tensors(Path(path))
        except (OSError, ValueError) as error:
            raise StatisticsError(f"cannot read second moments from {path}: {error}.") from error
        tokens, layers = metadata.pop("tokens", ""), [_LAYER.fullmatch(name) for name in tensors]
        if metadata.pop("format", None) != _FORMAT or not _COUNT.fullmatch(tokens) or None in layers:
            raise StatisticsError(
                f"{path} is a safetensors file but holds no second moments of this package; collect them anew."
            )
        for name, matrix in tensors.items():
            if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or matrix.dtype not in _DTYPES:
                raise StatisticsError(
                    f"{path}: {name} is {matrix.dtype} {tuple(matrix.shape)}; expected a square matrix of numbers. Collect the "
                    "second moments anew."
                )
        return cls({int(layer[1]): tensors[layer[0]] for layer in layers if layer is not None}, int(tokens), metadata)


def tokenizer_fingerprint(tok: Any) -> str:
    """Identify a tokenizer by its vocabulary.

    Args:
        tok: Hugging Face tokenizer.

    Returns:
        SHA-256 of the sorted vocabulary, as hex.
    """
    vocabulary = json.dumps(sorted(tok.get_vocab().items()), ensure_ascii=False)
    return hashlib.sha256(vocabulary.encode()).hexdigest()


def dtype_name(dtype: torch.dtype) -> str:
    """Return a number type's name, as "float32"."""
    return str(dtype).removeprefix("torch.")
