"""Second moments from the `.npz` files of ROME, MEMIT and EasyEdit: nothing is unpickled or unpacked unseen."""

from __future__ import annotations

import lzma
import math
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from numpy.lib import format as npy
from torch import Tensor

from nas_plugin.errors import StatisticsError

_SUM, _COUNT = "mom2.mom2", "mom2.count"
# Numbers of a real second moment hardly compress; an archive that grows more than this was made to fill the memory.
_MOST_GROWTH = 20
_SMALL = 1 << 16
# Of a matrix and of a number; neither has fields, objects or dates.
_NUMBERS = ("<f2", ">f2", "<f4", "<f8", ">f4", ">f8")
# NumPy reads a header with Python's own parser, and zipfile leaves it to every compressor to complain as it likes.
_WRONG = (
    OSError, ValueError, TypeError, ArithmeticError, AttributeError, LookupError, EOFError, MemoryError, RuntimeError,
    SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


def read_npz(path: str | Path) -> tuple[Tensor, int]:
    """Read a second moment in the layout of ROME, MEMIT and EasyEdit.

    The file holds the *sum* of k kᵀ (`mom2.mom2`) and the number of tokens (`mom2.count`).

    Args:
        path: The `.npz` file.

    Returns:
        The mean `(d_in, d_in)`, float32 or float64 as stored, and the count.

    Raises:
        StatisticsError: Arrays are missing or malformed, or the file is not an `.npz`.
    """
    try:
        with zipfile.ZipFile(path) as archive, warnings.catch_warnings():
            # NumPy warns of a file from another version before it refuses it.
            warnings.simplefilter("ignore")
            if missing := {f"{_SUM}.npy", f"{_COUNT}.npy"} - set(archive.namelist()):
                raise StatisticsError(
                    f"{path} has no array {min(missing)}; expected {_SUM} (the sum) and {_COUNT}, as ROME writes them."
                )
            total, count = _array(archive, _SUM, 2), _array(archive, _COUNT, None)
            tokens = int(count.item())
    except _WRONG as error:
        if isinstance(error, StatisticsError):
            raise
        raise StatisticsError(f"cannot read {path} as .npz statistics: {error!s:.200}.") from error
    if tokens <= 0 or total.shape[0] != total.shape[1] or total.dtype.str not in _NUMBERS:
        raise StatisticsError(
            f"{path}: {_SUM} is {total.dtype} {total.shape} over {tokens} tokens; expected a square float matrix and a positive "
            "count."
        )
    return torch.from_numpy(total.astype(total.dtype.newbyteorder("="), copy=False) / tokens), tokens


def _array(archive: zipfile.ZipFile, name: str, dimensions: int | None) -> Any:
    """Read an array whose header says that it fits into what the archive holds, of so many dimensions; None for one number."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.file_size > max(_SMALL, _MOST_GROWTH * entry.compress_size):
        raise ValueError(f"{name} would grow to {entry.file_size} bytes from {entry.compress_size}")
    with archive.open(entry) as file:
        version = npy.read_magic(file)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, _, dtype = read_header(file)
        size = math.prod(shape)
        fits = size == 1 if dimensions is None else len(shape) == dimensions
        if not fits or dtype.kind not in "iuf" or size * dtype.itemsize > entry.file_size:
            raise ValueError(f"{name} is {dtype} {shape}, in {entry.file_size} bytes")
    with archive.open(entry) as file:
        return npy.read_array(file, allow_pickle=False)
