"""A changed matrix as factors that give every bit of it, on any machine and with any number of threads.

W = round(W0 + 2^e L R) + c, where L `(rows, r)` and R `(r, columns)` hold whole numbers so small that every partial sum of their
product is below 2^53. In float64 such a product is exact whatever the order of the sum, so it is the same everywhere; adding W0
and rounding are one operation each. c, in units of the last place, is what rounding leaves: nothing but for a few entries in
half precision; a few units almost everywhere in float32, where a matrix that was edited a hundred times was rounded as often.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nas_plugin.reading import short

_EXACT_BITS = 53
_ROWS = 256
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
_FARTHEST = 1000


@dataclass(frozen=True)
class Factored:
    """One matrix as its module stores it, without W0.

    Attributes:
        left: L `(rows, r)`, int32.
        right: R `(r, columns)`, int32.
        exponent: e.
        dtype: Number type of the matrix.
        correction: c `(rows, columns)`, int8 or int16; `(0, 0)` if it is zero but for `places`.
        places: Where the matrix is noted itself, numbered by rows, `(n,)`.
        patch: Its bits there, `(n,)`.
        PARTS: Names of the tensors in a file.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("left", "right", "correction", "places", "patch")

    left: Tensor
    right: Tensor
    exponent: int
    dtype: torch.dtype
    correction: Tensor
    places: Tensor
    patch: Tensor

    @property
    def shape(self) -> torch.Size:
        """Shape of the matrix, `(rows, columns)`."""
        return torch.Size((len(self.left), self.right.shape[1]))

    @property
    def rank(self) -> int:
        """Columns of L."""
        return self.left.shape[1]

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by the names that they have in a file."""
        return {name: getattr(self, name) for name in self.PARTS}

    def numbers(self) -> dict[str, Any]:
        """Return everything else, as JSON can hold it."""
        return {"exponent": self.exponent, "dtype": str(self.dtype).removeprefix("torch.")}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Factored:
        """Make factors of what a file holds.

        Args:
            tensors: As `tensors` returned them.
            numbers: As `numbers` did.

        Returns:
            The factors.

        Raises:
            ValueError: They do not fit together. LookupError or TypeError likewise.
        """
        exponent, dtype = numbers["exponent"], _DTYPES[numbers["dtype"]]
        found = cls(exponent=exponent, dtype=dtype, **{name: tensors[name] for name in cls.PARTS})
        if type(exponent) is not int or abs(exponent) > _FARTHEST:
            raise ValueError(f"an exponent is {short(exponent)}")
        found._check()
        return found

    def _check(self) -> None:
        rows, columns = len(self.left), self.right.shape[-1]
        wanted = (
            self.left.dtype == self.right.dtype == torch.int32
            and self.left.dim() == self.right.dim() == 2
            and self.left.shape[1] == self.right.shape[0]
            and rows * columns > 0
            and self.correction.dtype in {torch.int8, torch.int16}
            and self.correction.shape in {(rows, columns), (0, 0)}
            and self.places.dtype in {torch.int32, torch.int64}
            and self.patch.dtype == _BITS[self.dtype.itemsize]
            and self.places.dim() == 1
            and self.places.shape == self.patch.shape
        )
        if not wanted:
            raise ValueError("its factors do not fit together")
        if len(self.places) and not 0 <= int(self.places.min()) <= int(self.places.max()) < rows * columns:
            raise ValueError("it corrects entries that a matrix does not have")

    def restored(self, base: Tensor) -> Tensor:
        """Return W, bit for bit.

        Args:
            base: W0 as the module stores it, `(rows, columns)`, on any device.

        Returns:
            W in the matrix's number type, on the CPU.
        """
        restored = self._plain(base)
        bits = restored.view(_BITS[self.dtype.itemsize])
        if self.correction.numel():
            for rows in _blocks(len(bits)):
                bits[rows] = _ordered(_ordered(bits[rows]) + self.correction[rows].to(bits.dtype))
        bits.view(-1)[self.places.long()] = self.patch
        return restored

    def _plain(self, base: Tensor) -> Tensor:
        """Return round(W0 + 2^e L R)."""
        restored = torch.empty(self.shape, dtype=self.dtype)
        right = self.right.to(torch.float64)
        for rows in _blocks(len(restored)):
            product = self.left[rows].to(torch.float64) @ right
            value = base[rows].detach().to("cpu", torch.float64) + product * 2.0**self.exponent
            # One rounding after the other, as every device is told to.
            restored[rows] = (value if self.dtype == torch.float64 else value.to(torch.float32)).to(self.dtype)
        return restored


def factored(left: Tensor, right: Tensor, base: Tensor, wanted: Tensor) -> Factored | None:
    """Turn a low-rank change into factors that give a matrix exactly.

    Args:
        left: Left factor of the change as the module stores it, `(rows, r)`, float64.
        right: Right factor, `(r, columns)`, float64.
        base: W0 as the module stores it, `(rows, columns)`.
        wanted: W, likewise; finite.

    Returns:
        The factors, checked; None if they would take as many bytes as the matrix.
    """
    full = wanted.numel() * wanted.element_size()
    wanted = wanted.detach().to("cpu").contiguous()
    if 4 * (left.numel() + right.numel()) >= full:
        return None
    (left, low), (right, lower) = _whole(left, left.shape[1]), _whole(right, left.shape[1])
    if abs(low + lower) > _FARTHEST:
        return None
    none = torch.zeros(0, dtype=torch.int32)
    bits = _BITS[wanted.element_size()]
    bare = Factored(
        left, right, low + lower, wanted.dtype, torch.zeros(0, 0, dtype=torch.int8), none, torch.zeros(0, dtype=bits)
    )
    found = min(_corrected(bare, bare._plain(base), wanted), key=lambda candidate: candidate.size)
    if found.size >= full or not torch.equal(found.restored(base).view(bits), wanted.view(bits)):
        return None
    return found


def _whole(factor: Tensor, rank: int) -> tuple[Tensor, int]:
    """Round a factor to whole numbers times 2^e; all sums of `rank` products of two such numbers are exact."""
    bits = (_EXACT_BITS - math.ceil(math.log2(max(rank, 1)))) // 2
    largest = float(factor.abs().max()) if factor.numel() else 0.0
    exponent = max(math.frexp(largest)[1] - bits, -_FARTHEST // 2) if largest else 0
    return torch.round(factor.to("cpu", torch.float64) * 2.0**-exponent).to(torch.int32).contiguous(), exponent


def _corrected(bare: Factored, plain: Tensor, wanted: Tensor) -> Iterator[Factored]:
    """Yield ways to note what the factors leave: all of it entry by entry, or a byte or two for each and the rest so."""
    bits = _BITS[wanted.element_size()]
    ours, theirs = plain.view(bits), wanted.view(bits)
    differ = _ordered(theirs).to(torch.int64) - _ordered(ours).to(torch.int64)
    for kind in (None, torch.int8, torch.int16):
        if kind is None:
            correction, beyond = bare.correction, differ != 0
        elif kind.itemsize >= wanted.element_size():
            continue
        else:
            beyond = differ.abs() > torch.iinfo(kind).max
            correction = differ.masked_fill(beyond, 0).to(kind)
        places = beyond.reshape(-1).nonzero().reshape(-1)
        patch = theirs.reshape(-1)[places].clone()
        places = places.to(torch.int32 if wanted.numel() < 2**31 else torch.int64)
        yield Factored(bare.left, bare.right, bare.exponent, bare.dtype, correction, places, patch)


def _ordered(bits: Tensor) -> Tensor:
    """Turn the bits of floating-point numbers into whole numbers of the same order, neighbours into neighbours; and back."""
    sign = bits >> (8 * bits.element_size() - 1)
    return bits ^ (sign & torch.iinfo(bits.dtype).max)


def _blocks(rows: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, rows, _ROWS))
