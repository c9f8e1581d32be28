"""Sampling one token per row from logits, by the Gumbel-max trick, in one read of them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evospec.kernels.overlap import await_inputs, overlap


@triton.jit
def _gumbel(number):
    return -tl.log(-tl.log(tl.maximum(number, 1e-10)))


@triton.jit
def _sample_kernel(logits, heat, clock, out, columns, seed, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr):
    await_inputs(OVERLAPS)
    row = tl.program_id(0).to(tl.int64)
    warmth = tl.load(heat + row)
    # A fresh stretch of the random sequence per call and row: columns never exceed 2**20.
    stream = ((tl.load(clock) * tl.num_programs(0) + row) << 20).to(tl.int64)
    column = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), -float("inf"), tl.float32)
    where = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, columns, 4 * BLOCK):
        # One round of the generator yields four numbers, and takes longer than all else here.
        first_noise = tl.zeros((BLOCK,), tl.float32)
        second_noise = first_noise
        third_noise = first_noise
        fourth_noise = first_noise
        if warmth > 0:
            one, two, three, four = tl.rand4x(seed, stream + first // 4 + column)
            first_noise = _gumbel(one) * warmth
            second_noise = _gumbel(two) * warmth
            third_noise = _gumbel(three) * warmth
            fourth_noise = _gumbel(four) * warmth
        for part in tl.static_range(4):
            place = first + part * BLOCK + column
            score = tl.load(logits + row * columns + place, mask=place < columns, other=-float("inf"))
            noise = first_noise
            if part == 1:
                noise = second_noise
            elif part == 2:
                noise = third_noise
            elif part == 3:
                noise = fourth_noise
            score = score.to(tl.float32) + noise
            better = score > best
            best = tl.where(better, score, best)
            where = tl.where(better, place, where)
    highest = tl.max(best)
    # The lowest index among equals, as argmax gives.
    tl.store(out + row, tl.min(tl.where(best == highest, where, columns)).to(tl.int64))


def sample(logits: Tensor, heat: Tensor, clock: Tensor, seed: int) -> Tensor:
    """One token id per row, int64 [rows].

    Args:
        logits: [rows, vocab], contiguous.
        heat: temperature of each row, float32 [rows]; 0 takes the best.
        clock: int64 [1]; another value gives other random numbers, so that a captured graph
            can draw anew by counting it up.
    """
    rows, columns = logits.shape
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _sample_kernel[(rows,)](
        logits, heat, clock, out, columns, seed, BLOCK=1024, num_warps=8, **overlap(logits)
    )
    return out
