"""The decayed means of hidden states that contexts are known by, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256


@triton.jit
def _advance_kernel(
    means, hidden, emitted, keep, shares, width, columns, PLACES: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    count = tl.load(emitted + row)
    place = tl.arange(0, PLACES)
    counted = (place < count) & (place < width)
    states = tl.load(
        hidden + (row * width + place[:, None]) * columns + column,
        mask=counted[:, None] & inside,
        other=0.0,
    )
    change = tl.sum(states.to(tl.float32), axis=0) * tl.load(shares + count)
    mean = tl.load(means + row * columns + column, mask=inside) * tl.load(keep + count)
    tl.store(means + row * columns + column, mean + change, mask=inside)


def advance_means(means: Tensor, hidden: Tensor, emitted: Tensor, keep: Tensor, shares: Tensor) -> None:
    """Of n tokens that a row emitted, its mean keeps keep[n], and takes in each state by shares[n].

    Args:
        means: changed in place, float32 [at least rows, columns].
        hidden: states of the places that decided the tokens [rows, places, columns].
        emitted: int64 [rows].
        keep, shares: float32 [places + 1].
    """
    rows, width, columns = hidden.shape
    _advance_kernel[(rows, triton.cdiv(columns, _BLOCK))](
        means,
        hidden.contiguous(),
        emitted,
        keep,
        shares,
        width,
        columns,
        PLACES=triton.next_power_of_2(width),
        BLOCK=_BLOCK,
        num_warps=4,
    )
