"""Changes to a buffer of head rows, in one launch that is the same for every change."""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl
from torch import Tensor

COUNTS: Final = 4  # numbers before the places: written, dropped, and slots in use afterwards and before
_BLOCK = 1024


@triton.jit
def _write_kernel(
    head,
    packed,
    rows,
    ids,
    active,
    padding,
    most,
    columns,
    COUNTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    places = packed + COUNTS
    if index < most:
        if index < tl.load(packed):
            slot = tl.load(places + index)
            source = tl.load(places + most + index)
            token = tl.load(places + 2 * most + index)
            for first in range(0, columns, BLOCK):
                inside = first + column < columns
                row = tl.load(head + source * columns + first + column, mask=inside)
                tl.store(rows + slot * columns + first + column, row, mask=inside)
            tl.store(ids + slot, token)
            tl.store(padding + slot, 0.0)
            tl.store(active + token, 1)
    elif index < 2 * most:
        if index - most < tl.load(packed + 1):
            gone = tl.load(places + 2 * most + index)
            tl.store(active + gone, 0)
    else:
        slot = tl.load(packed + 2) + (index - 2 * most) * BLOCK + column
        tl.store(padding + slot, -float("inf"), mask=slot < tl.load(packed + 3))


def write_rows(
    head: Tensor, packed: Tensor, *, rows: Tensor, ids: Tensor, active: Tensor, padding: Tensor
) -> None:
    """Copies rows of the head into the buffer's slots and marks what came and what left.

    Args:
        packed: `COUNTS` numbers, then places for as many slots, sources, tokens and tokens that left; slots
            in use before and not afterwards are padded, int64 [COUNTS + 4 * places].
        rows, ids, padding: of the buffer [slots, columns], int64 [slots] and float32 [slots].
        active: int64 [vocab].
    """
    most = (len(packed) - COUNTS) // 4
    _write_kernel[(2 * most + triton.cdiv(len(ids), _BLOCK),)](
        head,
        packed,
        rows,
        ids,
        active,
        padding,
        most,
        head.shape[1],
        COUNTS=COUNTS,
        BLOCK=_BLOCK,
        num_warps=4,
    )
