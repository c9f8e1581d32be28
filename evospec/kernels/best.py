"""The best few scores of each row, and the logarithm of all scores' sum of exponentials, in one read."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evospec.kernels.overlap import await_inputs, overlap

_BLOCK = 128  # scores whose best one is found before the best blocks are searched
_TILE = 16  # blocks of a program


@triton.jit
def _maxima_kernel(
    scores,
    maxima,
    tops,
    sums,
    columns,
    blocks,
    tiles,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    await_inputs(OVERLAPS)
    tile, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    block = tile * TILE + tl.arange(0, TILE)
    column = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    score = tl.load(scores + row * columns + column, mask=column < columns, other=-float("inf"))
    score = score.to(tl.float32)
    best = tl.max(score, axis=1)
    tl.store(maxima + row * blocks + block, best, mask=block < blocks)
    top = tl.max(best, axis=0)
    tl.store(tops + row * tiles + tile, top)
    tl.store(sums + row * tiles + tile, tl.sum(tl.sum(tl.exp(score - top), axis=1), axis=0))


@triton.jit
def _pick_kernel(
    scores,
    maxima,
    tops,
    sums,
    found,
    ids,
    columns,
    blocks,
    tiles,
    K: tl.constexpr,
    BEST: tl.constexpr,
    BLOCKS: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    await_inputs(OVERLAPS)
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    maximum = tl.load(maxima + row * blocks + block, mask=block < blocks, other=-float("inf"))
    rank = tl.arange(0, BEST)
    chosen = tl.zeros((BEST,), tl.int32)
    for place in range(K):
        highest = tl.max(maximum, axis=0)
        first = tl.min(tl.where(maximum == highest, block, BLOCKS), axis=0)
        chosen = tl.where(rank == place, first, chosen)
        maximum = tl.where(block == first, -float("inf"), maximum)
    column = chosen[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    real = (rank < K)[:, None] & (column < columns)
    score = tl.load(scores + row * columns + column, mask=real, other=-float("inf")).to(tl.float32)
    for place in range(K):
        best = tl.max(tl.max(score, axis=1), axis=0)
        # The lowest index among equals, as argmax gives.
        token = tl.min(tl.min(tl.where((score == best) & real, column, columns), axis=1), axis=0)
        tl.store(found + row * (K + 1) + place, best)
        tl.store(ids + row * K + place, token.to(tl.int64))
        score = tl.where(column == token, -float("inf"), score)
    tile = tl.arange(0, TILES)
    top = tl.load(tops + row * tiles + tile, mask=tile < tiles, other=-float("inf"))
    total = tl.load(sums + row * tiles + tile, mask=tile < tiles, other=0.0)
    highest = tl.max(top, axis=0)
    tl.store(found + row * (K + 1) + K, highest + tl.log(tl.sum(total * tl.exp(top - highest), axis=0)))


def best_scores(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row, best first, the lowest index first among equals.

    They lie in the k blocks with the largest maxima, so that only a few blocks are read again.

    Args:
        scores: [rows, columns], contiguous, finite; k is at most `columns`.

    Returns:
        float32 [rows, k + 1]: the best scores, then the log of the row's sum of exponentials; and the
        best ones' columns, int64 [rows, k].
    """
    rows, columns = scores.shape
    device = scores.device
    blocks = triton.cdiv(columns, _BLOCK)
    tiles = triton.cdiv(blocks, _TILE)
    maxima = torch.empty(rows, blocks, dtype=torch.float32, device=device)
    tops, sums = torch.empty(2, rows, tiles, dtype=torch.float32, device=device)
    found = torch.empty(rows, k + 1, dtype=torch.float32, device=device)
    ids = torch.empty(rows, k, dtype=torch.int64, device=device)
    _maxima_kernel[(tiles, rows)](
        scores,
        maxima,
        tops,
        sums,
        columns,
        blocks,
        tiles,
        TILE=_TILE,
        BLOCK=_BLOCK,
        num_warps=4,
        **overlap(scores),
    )
    _pick_kernel[(rows,)](
        scores,
        maxima,
        tops,
        sums,
        found,
        ids,
        columns,
        blocks,
        tiles,
        K=k,
        BEST=triton.next_power_of_2(k),
        BLOCKS=triton.next_power_of_2(blocks),
        TILES=triton.next_power_of_2(tiles),
        BLOCK=_BLOCK,
        num_warps=4,
        **overlap(scores),
    )
    return found, ids
