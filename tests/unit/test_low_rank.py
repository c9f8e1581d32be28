"""Cutting a matrix to a rank: as good as the best there is, exact where it can be, always the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from evospec.align.low_rank import LowRank, nearest_of_rank

SIZES = st.integers(1, 160)  # looks at all directions of some, and at a part of those of others


def random_matrix(seed: int, rows: int, columns: int, decay: float = 0.0) -> Tensor:
    """Gaussian, with columns that fall off as 1 / place ** decay."""
    generator = torch.Generator().manual_seed(seed)
    place = 1 + torch.arange(columns, dtype=torch.float32)
    return torch.randn(rows, columns, generator=generator) * place**-decay


def error(matrix: Tensor, found: LowRank) -> float:
    return (matrix.double() - found.b.double() @ found.a.double()).norm().item()


def least_error(matrix: Tensor, rank: int) -> float:
    """Eckart and Young: what the singular values that are left add up to."""
    return torch.linalg.svdvals(matrix.double())[rank:].norm().item()


@given(
    seed=st.integers(0, 2**32), rows=SIZES, columns=SIZES, rank=st.integers(1, 40), decay=st.floats(0.0, 2.0)
)
def test_no_matrix_of_that_rank_is_much_nearer(
    seed: int, rows: int, columns: int, rank: int, decay: float
) -> None:
    matrix = random_matrix(seed, rows, columns, decay)
    found = nearest_of_rank(matrix, rank)
    kept = min(rank, rows, columns)
    assert (found.b.shape, found.a.shape) == ((rows, kept), (kept, columns))
    rounding = 1e-5 * matrix.norm().item()
    assert least_error(matrix, kept) - rounding <= error(matrix, found)
    assert error(matrix, found) <= 1.02 * least_error(matrix, kept) + rounding


@given(seed=st.integers(0, 2**32), rows=SIZES, columns=SIZES, rank=st.integers(1, 20))
def test_what_has_that_rank_stays_as_it_is(seed: int, rows: int, columns: int, rank: int) -> None:
    matrix = random_matrix(seed, rows, rank) @ random_matrix(seed + 1, rank, columns)
    assert error(matrix, nearest_of_rank(matrix, rank)) <= 1e-5 * matrix.norm().item()


@pytest.mark.parametrize("shape", [(3, 4), (150, 180), (180, 150), (1, 90)], ids=str)
def test_nothing_stays_nothing(shape: tuple[int, int]) -> None:
    found = nearest_of_rank(torch.zeros(shape), 2)
    assert torch.equal(found.b @ found.a, torch.zeros(shape))


@pytest.mark.parametrize("shape", [(40, 50), (150, 180), (180, 150)], ids=str)
def test_equal_matrices_are_cut_alike_and_nobody_elses_randomness_moves(shape: tuple[int, int]) -> None:
    matrix = random_matrix(5, *shape)
    state = torch.get_rng_state()
    first = nearest_of_rank(matrix, 8)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(77)
    second = nearest_of_rank(matrix.clone(), 8)
    assert torch.equal(first.a, second.a)
    assert torch.equal(first.b, second.b)


def test_large_and_small_numbers_are_cut_alike() -> None:
    matrix = random_matrix(6, 150, 180)
    for size in (1e-12, 1e12):
        found = nearest_of_rank(matrix * size, 8)
        assert error(matrix * size, found) <= 1.02 * size * least_error(matrix, 8)
