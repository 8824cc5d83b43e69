"""A matrix as factors: every bit of it, against whole numbers in Python; and the nearest of a rank, against an SVD."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nas_plugin.keep.factored import _BITS, Factored, _ordered, factored
from nas_plugin.share.lowrank import low_rank

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def matrices(dtype: torch.dtype, rank: int, steps: int, seed: int, rows: int = 40, columns: int = 60) -> list[Tensor]:
    """W0 as stored, W before it was rounded (written in so many steps), W as stored."""
    generator = torch.Generator().manual_seed(seed)
    base = (torch.randn(rows, columns, generator=generator) / 8).to(dtype)
    master = base.float()
    right = torch.randn(rank, columns, generator=generator) / 10
    for _ in range(steps):
        # Few directions for a long stream: what accumulates besides is rounding.
        left = torch.randn(rows, rank, generator=generator) / 10 / steps**0.5
        master = torch.addmm(master, left, right)
    return [base, master, master.to(dtype, copy=True)]


def factors(base: Tensor, master: Tensor, wanted: Tensor) -> Factored | None:
    found = low_rank(base.float(), master)
    return factored(found.left, found.right, base, wanted)


def same_bits(left: Tensor, right: Tensor) -> bool:
    kind = _BITS[left.element_size()]
    return left.dtype == right.dtype and torch.equal(left.view(kind), right.view(kind))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rank", "steps"), [(1, 1), (3, 1), (2, 200)])
def test_every_bit_comes_back_from_fewer_bytes(dtype: torch.dtype, rank: int, steps: int) -> None:
    base, master, wanted = matrices(dtype, rank, steps, seed=rank)
    found = factors(base, master, wanted)
    assert found is not None and found.size < wanted.numel() * wanted.element_size()
    assert same_bits(found.restored(base), wanted)
    assert not same_bits(found.restored(base + base), wanted), "another base gives another matrix"


def test_the_product_is_the_same_in_any_order_of_summation() -> None:
    base, master, wanted = matrices(torch.float32, 5, 1, seed=0, rows=90, columns=130)
    found = factors(base, master, wanted)
    assert found is not None
    left, right = found.left.to(torch.float64), found.right.to(torch.float64)
    bound = found.rank * int(found.left.abs().max()) * int(found.right.abs().max())
    assert 2**45 < bound <= 2**53
    for order in (torch.arange(5), torch.tensor([4, 2, 0, 1, 3])):
        assert torch.equal(left[:, order] @ right[order], left @ right)
    backwards = sum(left[:, k, None] * right[None, k] for k in reversed(range(5)))
    assert torch.equal(backwards, left @ right)


def test_a_naive_twin_in_fractions() -> None:
    base, master, wanted = matrices(torch.float32, 2, 3, seed=4, rows=12, columns=40)
    found = factors(base, master, wanted)
    assert found is not None and found.correction.numel()
    for i, j in [(0, 0), (3, 7), (11, 39), (5, 20)]:
        product = sum(int(found.left[i, k]) * int(found.right[k, j]) for k in range(found.rank))
        exact = Fraction(float(base[i, j])) + product * Fraction(2) ** found.exponent
        plain = torch.tensor(float(exact), dtype=torch.float64).to(torch.float32)
        units = int(_ordered(wanted[i, j].view(torch.int32))) - int(_ordered(plain.view(torch.int32)))
        noted = i * 40 + j in found.places.tolist()
        assert noted or units == int(found.correction[i, j])


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_what_has_no_low_rank_stays_whole(dtype: torch.dtype) -> None:
    base, other = torch.randn(30, 40).to(dtype), torch.randn(30, 40).to(dtype)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    found = low_rank(base.to(kind), other.to(kind))
    assert found.rank == 30 and factored(found.left, found.right, base, other) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_change_takes_next_to_nothing(dtype: torch.dtype) -> None:
    base = torch.randn(30, 40).to(dtype)
    found = factors(base, base.float(), base)
    assert found is not None and found.rank == 0 and found.size == 0 and same_bits(found.restored(base), base)


def test_zeros_with_signs_and_tiny_numbers_come_back() -> None:
    base, master, wanted = matrices(torch.float32, 1, 1, seed=9)
    for number in (-0.0, 0.0, 1e-45, -1e-40, 3e38):
        wanted[3, 5] = number
        wanted[7, :2] = -number
        found = factored(*(getattr(low_rank(base, master), name) for name in ("left", "right")), base, wanted)
        assert found is not None and same_bits(found.restored(base), wanted)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=20))
def test_ordered_bits_rise_with_numbers_and_turn_back(numbers: list[float]) -> None:
    values = torch.tensor(sorted(numbers), dtype=torch.float32)
    bits = values.view(torch.int32)
    order = _ordered(bits)
    assert torch.equal(_ordered(order), bits)
    differ = values.diff() > 0
    assert bool((order.to(torch.int64).diff() > 0)[differ].all())


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(DTYPES), st.integers(1, 3), st.integers(1, 5), st.integers(0, 10**6))
def test_any_change_that_is_taken_comes_back(dtype: torch.dtype, rank: int, steps: int, seed: int) -> None:
    base, master, wanted = matrices(dtype, rank, steps, seed)
    found = factors(base, master, wanted)
    assert found is None or same_bits(found.restored(base), wanted)


@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
@pytest.mark.parametrize("rank", [None, 4, 9])
def test_the_nearest_of_a_rank_is_that_of_an_svd(shape: tuple[int, int], rank: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(*shape, generator=generator)
    after = before + torch.randn(shape[0], 9, generator=generator) @ torch.randn(9, shape[1], generator=generator)
    change = after.double() - before.double()
    found = low_rank(before, after)
    assert found.rank == 9
    found = found if rank is None else found.truncated(rank)
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    number = rank or 9
    torch.testing.assert_close(found.left @ found.right, (u[:, :number] * s[:number]) @ v[:number], rtol=0, atol=1e-4)
    share = float(s[:number].square().sum() / s.square().sum())
    assert found.share == pytest.approx(share, abs=1e-10)
    left_out = float((change - found.left @ found.right).square().sum() / change.square().sum())
    assert left_out == pytest.approx(1 - share, abs=1e-10)


def test_rounding_is_no_rank() -> None:
    base, master, _ = matrices(torch.float32, 3, 400, seed=2, rows=64, columns=96)
    assert low_rank(base, master).rank == 3
