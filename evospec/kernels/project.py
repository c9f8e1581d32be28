"""Matrix products of a few tokens, which take as long as their weights take to arrive.

A program owns a few rows of the weight, whole: no sums pass through global memory. Its warps
share the inputs among them and multiply on tensor cores, whose tiles are narrow enough (the
tokens on one side, 8 rows on the other) that small matrices, too, spread over the device.
A token's sums are taken in the same order however many tokens stand beside it.

A norm before the product costs no pass of its own: the factor that it multiplies a token by is
found along the way and comes in at the end, so a normed number is rounded once rather than twice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evospec.kernels.overlap import await_inputs, overlap, prefetch_rows, step_bytes
from evospec.kernels.products import (
    choices,
    choosers,
    held_tiles,
    multiplied,
    next_variant,
    norm_factor,
    scaled,
    tile,
    variant_of,
)
from evospec.kernels.tiling import LINE_BYTES, Tiling, tiling


@triton.jit
def _add_step(
    total,
    total_up,
    squares,
    states,
    norm,
    weights,
    weights_up,
    token,
    tokens,
    inputs,
    at,
    NORMED: tl.constexpr,
    GATED: tl.constexpr,
):
    """Adds one step's products to the sums."""
    state = tile(states, token, tokens, inputs, at, inputs)
    if NORMED:
        wide = state.to(tl.float32)
        squares += wide * wide
        state = scaled(state, norm, at, inputs)
    total = multiplied(state, weights, total)
    if GATED:
        total_up = multiplied(state, weights_up, total_up)
    return total, total_up, squares


@triton.jit
def _add_products(
    total,
    total_up,
    squares,
    states,
    norm,
    weight,
    held,
    held_up,
    token,
    tokens,
    row,
    outputs,
    inputs,
    column,
    NORMED: tl.constexpr,
    GATED: tl.constexpr,
    HELD: tl.constexpr,
    STEPS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Adds the products over all inputs to the sums."""
    for step in tl.static_range(HELD):
        total, total_up, squares = _add_step(
            total,
            total_up,
            squares,
            states,
            norm,
            held[step],
            held_up[step] if GATED else held[step],
            token,
            tokens,
            inputs,
            step * STEP + column,
            NORMED,
            GATED,
        )
    if HELD < STEPS:
        for first in range(HELD * STEP, inputs, STEP):
            at = first + column
            weights = tile(weight, row, outputs, inputs, at, inputs)
            weights_up = weights
            if GATED:  # the gate's rows come first, then as many of what it multiplies
                weights_up = tile(weight, row + outputs, 2 * outputs, inputs, at, inputs)
            total, total_up, squares = _add_step(
                total,
                total_up,
                squares,
                states,
                norm,
                weights,
                weights_up,
                token,
                tokens,
                inputs,
                at,
                NORMED,
                GATED,
            )
    return total, total_up, squares


@triton.jit
def _project_kernel(
    states,
    norm,
    weight,
    choice,
    bias,
    residual,
    out,
    tokens,
    per_row,
    outputs,
    inputs,
    eps,
    CHOICES: tl.constexpr,  # 0: all go through the first variant; 1: all through one; 2: rows through theirs
    VARIANTS: tl.constexpr,
    NORMED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    HELD: tl.constexpr,
    STEPS: tl.constexpr,
    LINES: tl.constexpr,
    LINE: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    step_inputs: tl.constexpr = PARTS * PART
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    column = (tl.arange(0, PARTS)[:, None] * PART + tl.arange(0, PART)[None, :])[:, None, :]
    total = tl.zeros((PARTS, TOKENS, ROWS), tl.float32)
    total_up = tl.zeros((PARTS, TOKENS, ROWS), tl.float32)
    squares = tl.zeros((PARTS, TOKENS, PART), tl.float32)
    if CHOICES <= 1:
        if CHOICES == 1:
            weight = variant_of(weight, tl.load(choice), (2 if GATED else 1) * outputs, inputs)
        held = held_tiles(weight, row, outputs, inputs, column, inputs, HELD, step_inputs)
        held_up = held
        if GATED:
            held_up = held_tiles(
                weight, row + outputs, 2 * outputs, inputs, column, inputs, HELD, step_inputs
            )
        if OVERLAPS and LINES:
            prefetch_rows(weight, row, outputs, inputs, HELD * step_inputs, LINES, LINE)
            if GATED:
                prefetch_rows(weight, row + outputs, 2 * outputs, inputs, HELD * step_inputs, LINES, LINE)
        await_inputs(OVERLAPS)
        total, total_up, squares = _add_products(
            total,
            total_up,
            squares,
            states,
            norm,
            weight,
            held,
            held_up,
            token,
            tokens,
            row,
            outputs,
            inputs,
            column,
            NORMED,
            GATED,
            HELD,
            STEPS,
            step_inputs,
        )
    else:
        await_inputs(OVERLAPS)
        chosen = choices(choice, token, tokens, per_row)
        variant = next_variant(chosen, -1, VARIANTS)
        while variant < VARIANTS:
            total, total_up, squares = _add_products(
                total,
                total_up,
                squares,
                states,
                norm,
                variant_of(weight, variant, (2 if GATED else 1) * outputs, inputs),
                (),
                (),
                choosers(chosen, variant, token, tokens),
                tokens,
                row,
                outputs,
                inputs,
                column,
                NORMED,
                GATED,
                0,
                STEPS,
                step_inputs,
            )
            variant = next_variant(chosen, variant, VARIANTS)
    result = tl.sum(total, axis=0)  # [TOKENS, ROWS]
    if NORMED:
        factor = norm_factor(squares, inputs, eps)
        result *= factor
    if HAS_BIAS:
        result += tl.load(bias + row, mask=row < outputs, other=0.0).to(tl.float32)[None, :]
    dtype = out.dtype.element_ty
    if GATED:
        # Rounded after each operation, as separate ones would be.
        gate = result.to(dtype).to(tl.float32)
        up = tl.sum(total_up, axis=0)
        if NORMED:
            up *= factor
        if GELU:
            inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
            active = gate * tl.sigmoid(2.0 * inner)  # 0.5 * (1 + tanh(x)) is sigmoid(2x)
        else:
            active = gate * tl.sigmoid(gate)
        result = active.to(dtype).to(tl.float32) * up.to(dtype).to(tl.float32)
    cell = token[:, None] * outputs + row[None, :]
    real = (token < tokens)[:, None] & (row < outputs)[None, :]
    if HAS_RESIDUAL:
        carried = tl.load(residual + cell, mask=real, other=0.0)
        result = result.to(dtype).to(tl.float32) + carried.to(tl.float32)
    tl.store(out + cell, result.to(dtype), mask=real)


def project(
    states: Tensor,
    weight: Tensor,
    choice: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    gelu: bool | None = None,
    tiles: Tiling | None = None,
) -> Tensor:
    """residual + act(norm(states) @ weight.T + bias), each part but the product where it is given.

    Args:
        states: [..., inputs], of `MOST_TOKENS` tokens at most.
        weight: variants [variants, outputs, inputs], contiguous; with a gate, the gate's rows [outputs]
            come first and the rows that it multiplies [outputs] follow.
        choice: the variant of each row of the states, which come as [rows, ..., inputs] then, int64 [rows];
            None: all go through the first.
        bias: [outputs].
        norm: weight of the root-mean-square norm [inputs].
        residual: [..., outputs], contiguous.
        gelu: whether the gate's activation is GELU (tanh form) or SiLU; None is no gate.
        tiles: other than `tiling` gives.

    Returns:
        [..., outputs].
    """
    states = states.contiguous()
    inputs = states.shape[-1]
    tokens = states.numel() // inputs
    gated = gelu is not None
    outputs = weight.shape[1] // (2 if gated else 1)
    tiles = tiles or tiling(
        outputs,
        inputs,
        tokens=tokens,
        itemsize=states.element_size(),
        shared=step_bytes(states),
        weights=2 if gated else 1,
    )
    out = torch.empty(*states.shape[:-1], outputs, dtype=states.dtype, device=states.device)
    _project_kernel[(triton.cdiv(outputs, tiles.rows),)](
        states,
        states if norm is None else norm,
        weight,
        states if choice is None else choice,
        states if bias is None else bias,
        states if residual is None else residual,
        out,
        tokens,
        1 if choice is None else tokens // len(choice),
        outputs,
        inputs,
        eps,
        CHOICES=0 if choice is None else min(len(choice), 2),
        VARIANTS=weight.shape[0],
        NORMED=norm is not None,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        GATED=gated,
        GELU=bool(gelu),
        TOKENS=triton.next_power_of_2(tokens),
        ROWS=tiles.rows,
        PARTS=tiles.parts,
        PART=tiles.part,
        num_warps=tiles.parts,
        HELD=tiles.held,
        STEPS=tiles.steps,
        LINES=tiles.lines(inputs, states.element_size()),
        LINE=LINE_BYTES // states.element_size(),
        num_stages=tiles.steps_ahead + 1,
        **overlap(states),
    )
    return out
