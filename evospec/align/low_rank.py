"""The best approximation of a matrix by one of low rank, found quickly and always the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

OVERSAMPLED: Final = 32  # directions looked at beyond those that are kept
POWER_STEPS: Final = 3
_SEED: Final = 0


@dataclass(frozen=True, slots=True)
class LowRank:
    """b [out, rank] @ a [rank, in]."""

    a: Tensor
    b: Tensor


@torch.no_grad()
def nearest_of_rank(matrix: Tensor, rank: int) -> LowRank:
    """What the leading `rank` singular values and vectors of a finite matrix [out, in] make of it.

    By the Frobenius norm, what is left is within two percent of the least there is (Eckart and Young 1936),
    and no more than rounding where the matrix is of that rank or less; 0 stays 0. Subspace iteration from a
    fixed start finds the directions (Halko, Martinsson and Tropp, 0909.4061, algorithm 4.4); where they are
    no small part of all, all are looked at. Equal matrices give equal results on the same machine, and the
    global generators are left alone.

    Returns:
        Matrices of the smaller of `rank`, out and in.
    """
    outputs, inputs = matrix.shape
    if outputs > inputs:
        turned = nearest_of_rank(matrix.T, rank)
        return LowRank(a=turned.b.T.contiguous(), b=turned.a.T.contiguous())
    rank = min(rank, outputs)
    if 2 * (rank + OVERSAMPLED) >= outputs:
        b = _leading(matrix, rank)
    else:
        basis = _range(matrix, rank + OVERSAMPLED)
        b = basis @ _leading(basis.T @ matrix, rank)
    return LowRank(a=b.T @ matrix, b=b)


def _range(matrix: Tensor, width: int) -> Tensor:
    """Orthonormal columns that nearly span what a matrix does most of [out, width]."""
    generator = torch.Generator().manual_seed(_SEED)
    start = torch.randn(matrix.shape[1], width, generator=generator).to(matrix)
    basis = _orthonormal(matrix @ start)
    for _ in range(POWER_STEPS):
        basis = _orthonormal(matrix @ _orthonormal(matrix.T @ basis))
    return basis


def _orthonormal(columns: Tensor) -> Tensor:
    return torch.linalg.qr(columns).Q


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """Leading left singular vectors of a matrix that is no taller than wide [out, rank].

    As eigenvectors of its Gram matrix: in double precision, whose square root is that of float32.
    """
    wide = matrix.double()
    return torch.linalg.eigh(wide @ wide.T).eigenvectors[:, -rank:].to(matrix.dtype).contiguous()
