"""Matrix products of many tokens whose rows have chosen different variants of the weight.

Rows are taken in the order of their choice, so that a program's tokens mostly go through one variant; where
theirs are several, it goes through these, one after the other, as `project` does. So each variant's weight is
read for the tokens that chose it, and hardly for others. Where a matrix has few outputs, programs share its
inputs, too; how sums are ordered depends on the matrix alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evospec.kernels.products import next_variant, variant_of

_MOST_TOKENS = 64  # of a program
_INPUTS = 64  # of a step
_NARROW = 8192  # outputs up to which programs take fewer of them, so that all of a device has something to do
_PROGRAMS = 128  # for each block of tokens, at least: about as many as large devices run at once
_LEAST_STEPS = 8  # of a program that shares its inputs with others


@triton.jit
def _project_many_kernel(
    states,
    weight,
    choice,
    order,
    out,
    tokens,
    per_row,
    outputs,
    inputs,
    span,
    VARIANTS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    place = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    request = tl.load(order + place // per_row, mask=place < tokens, other=0)
    chosen = tl.load(choice + request, mask=place < tokens, other=-1).to(tl.int32)
    token = request * per_row + place % per_row
    column = tl.arange(0, INPUTS)
    begin = tl.program_id(2) * span
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    variant = next_variant(chosen, -1, VARIANTS)
    while variant < VARIANTS:
        own = variant_of(weight, variant, outputs, inputs)
        for first in range(begin, tl.minimum(begin + span, inputs), INPUTS):
            at = first + column
            state = tl.load(
                states + token[:, None] * inputs + at[None, :],
                mask=(chosen == variant)[:, None] & (at < inputs)[None, :],
                other=0.0,
            )
            weights = tl.load(
                own + row[None, :].to(tl.int64) * inputs + at[:, None],
                mask=(row < outputs)[None, :] & (at < inputs)[:, None],
                other=0.0,
            )
            total = tl.dot(state, weights, total, input_precision="tf32x3")
        variant = next_variant(chosen, variant, VARIANTS)
    real = (place < tokens)[:, None] & (row < outputs)[None, :]
    own_out = out + tl.program_id(2).to(tl.int64) * tokens * outputs
    tl.store(own_out + token[:, None] * outputs + row[None, :], total.to(out.dtype.element_ty), mask=real)


def project_many(states: Tensor, weight: Tensor, choice: Tensor, order: Tensor) -> Tensor:
    """states times the variant of the weight that each row has chosen.

    Args:
        states: [rows, ..., inputs].
        weight: [variants, outputs, inputs], contiguous.
        choice: int64 [rows].
        order: the rows by their choice, int64 [rows].

    Returns:
        [rows, ..., outputs].
    """
    states = states.contiguous()
    variants, outputs, inputs = weight.shape
    tokens = states.numel() // inputs
    block, rows = token_block(tokens), 32 if outputs <= _NARROW else 64
    span = shared_inputs(triton.cdiv(outputs, rows), inputs)
    shares = triton.cdiv(inputs, span)
    dtype = states.dtype if shares == 1 else torch.float32
    out = states.new_empty(shares, *states.shape[:-1], outputs, dtype=dtype)
    _project_many_kernel[(triton.cdiv(outputs, rows), triton.cdiv(tokens, block), shares)](
        states,
        weight,
        choice,
        order,
        out,
        tokens,
        tokens // len(choice),
        outputs,
        inputs,
        span,
        VARIANTS=variants,
        TOKENS=block,
        ROWS=rows,
        INPUTS=_INPUTS,
        num_warps=4,
        num_stages=4,
    )
    return out[0] if shares == 1 else out.sum(dim=0).to(states.dtype)


def shared_inputs(programs: int, inputs: int) -> int:
    """How many of so many inputs a program takes, where that many programs take all outputs."""
    steps = triton.cdiv(inputs, _INPUTS)
    shares = max(1, min(triton.cdiv(_PROGRAMS, programs), steps // _LEAST_STEPS))
    return int(triton.cdiv(steps, shares) * _INPUTS)


def token_block(tokens: int) -> int:
    """How many of so many tokens a program takes."""
    return min(max(triton.next_power_of_2(tokens), 16), _MOST_TOKENS)
