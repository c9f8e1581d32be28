"""Changes to a buffer of head rows, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


# Counts change with every update: specialising on their values would compile again and again.
@triton.jit(do_not_specialize=["written", "dropped", "used", "before"])
def _write_kernel(
    head,
    packed,
    rows,
    ids,
    active,
    padding,
    written,
    dropped,
    used,
    before,
    columns,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    if index < written:
        slot = tl.load(packed + index)
        source = tl.load(packed + written + index)
        token = tl.load(packed + 2 * written + index)
        for first in range(0, columns, BLOCK):
            inside = first + column < columns
            row = tl.load(head + source * columns + first + column, mask=inside)
            tl.store(rows + slot * columns + first + column, row, mask=inside)
        tl.store(ids + slot, token)
        tl.store(padding + slot, 0.0)
        tl.store(active + token, 1)
    elif index < written + dropped:
        gone = tl.load(packed + 2 * written + index)
        tl.store(active + gone, 0)
    else:
        slot = used + (index - written - dropped) * BLOCK + column
        tl.store(padding + slot, -float("inf"), mask=slot < before)


def write_rows(
    head: Tensor,
    packed: Tensor,
    *,
    rows: Tensor,
    ids: Tensor,
    active: Tensor,
    padding: Tensor,
    written: int,
    dropped: int,
    used: int,
    before: int,
) -> None:
    """Copies rows of the head into the buffer's slots and marks what came and what left.

    Args:
        packed: slots, sources and tokens of the rows that are written, then the tokens that left,
            int64 [3 * written + dropped, or more].
        rows, ids, padding: of the buffer [slots, columns], int64 [slots] and float32 [slots].
        active: int64 [vocab].
        used, before: slots in use afterwards and before; those that are not any more are padded.
    """
    programs = written + dropped + triton.cdiv(max(0, before - used), _BLOCK)
    if programs:
        _write_kernel[(programs,)](
            head,
            packed,
            rows,
            ids,
            active,
            padding,
            written,
            dropped,
            used,
            before,
            head.shape[1],
            BLOCK=_BLOCK,
            num_warps=4,
        )
