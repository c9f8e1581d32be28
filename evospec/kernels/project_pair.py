"""The product of two tensors' norms, concatenated: as `project`, without the concatenation."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evospec.kernels.overlap import await_inputs, overlap, step_bytes
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
from evospec.kernels.tiling import Tiling, tiling


@triton.jit
def _add_step(
    first_total,
    second_total,
    first_squares,
    second_squares,
    first_states,
    second_states,
    first_norm,
    second_norm,
    first_weights,
    second_weights,
    token,
    tokens,
    inputs,
    at,
):
    """Adds one step's products and squares to the sums."""
    first_state = tile(first_states, token, tokens, inputs, at, inputs)
    second_state = tile(second_states, token, tokens, inputs, at, inputs)
    wide = first_state.to(tl.float32)
    first_squares += wide * wide
    wide = second_state.to(tl.float32)
    second_squares += wide * wide
    first_total = multiplied(scaled(first_state, first_norm, at, inputs), first_weights, first_total)
    second_total = multiplied(scaled(second_state, second_norm, at, inputs), second_weights, second_total)
    return first_total, second_total, first_squares, second_squares


@triton.jit
def _add_products(
    first_total,
    second_total,
    first_squares,
    second_squares,
    first_states,
    second_states,
    first_norm,
    second_norm,
    weight,
    first_held,
    second_held,
    token,
    tokens,
    row,
    outputs,
    inputs,
    column,
    HELD: tl.constexpr,
    STEPS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Adds the products over all inputs of each to the sums."""
    for step in tl.static_range(HELD):
        first_total, second_total, first_squares, second_squares = _add_step(
            first_total,
            second_total,
            first_squares,
            second_squares,
            first_states,
            second_states,
            first_norm,
            second_norm,
            first_held[step],
            second_held[step],
            token,
            tokens,
            inputs,
            step * STEP + column,
        )
    if HELD < STEPS:
        for first in range(HELD * STEP, inputs, STEP):
            at = first + column
            first_total, second_total, first_squares, second_squares = _add_step(
                first_total,
                second_total,
                first_squares,
                second_squares,
                first_states,
                second_states,
                first_norm,
                second_norm,
                tile(weight, row, outputs, 2 * inputs, at, inputs),
                tile(weight + inputs, row, outputs, 2 * inputs, at, inputs),
                token,
                tokens,
                inputs,
                at,
            )
    return first_total, second_total, first_squares, second_squares


@triton.jit
def _project_pair_kernel(
    first_states,
    second_states,
    first_norm,
    second_norm,
    weight,
    choice,
    out,
    tokens,
    per_row,
    outputs,
    inputs,
    first_eps,
    second_eps,
    CHOICES: tl.constexpr,  # 0: all go through the first variant; 1: all through one; 2: rows through theirs
    VARIANTS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    HELD: tl.constexpr,
    STEPS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    step_inputs: tl.constexpr = PARTS * PART
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    column = (tl.arange(0, PARTS)[:, None] * PART + tl.arange(0, PART)[None, :])[:, None, :]
    first_total = tl.zeros((PARTS, TOKENS, ROWS), tl.float32)
    second_total = tl.zeros((PARTS, TOKENS, ROWS), tl.float32)
    first_squares = tl.zeros((PARTS, TOKENS, PART), tl.float32)
    second_squares = tl.zeros((PARTS, TOKENS, PART), tl.float32)
    if CHOICES <= 1:
        if CHOICES == 1:
            weight = variant_of(weight, tl.load(choice), outputs, 2 * inputs)
        first_held = held_tiles(weight, row, outputs, 2 * inputs, column, inputs, HELD, step_inputs)
        second_held = held_tiles(weight + inputs, row, outputs, 2 * inputs, column, inputs, HELD, step_inputs)
        await_inputs(OVERLAPS)
        first_total, second_total, first_squares, second_squares = _add_products(
            first_total,
            second_total,
            first_squares,
            second_squares,
            first_states,
            second_states,
            first_norm,
            second_norm,
            weight,
            first_held,
            second_held,
            token,
            tokens,
            row,
            outputs,
            inputs,
            column,
            HELD,
            STEPS,
            step_inputs,
        )
    else:
        await_inputs(OVERLAPS)
        chosen = choices(choice, token, tokens, per_row)
        variant = next_variant(chosen, -1, VARIANTS)
        while variant < VARIANTS:
            first_total, second_total, first_squares, second_squares = _add_products(
                first_total,
                second_total,
                first_squares,
                second_squares,
                first_states,
                second_states,
                first_norm,
                second_norm,
                variant_of(weight, variant, outputs, 2 * inputs),
                (),
                (),
                choosers(chosen, variant, token, tokens),
                tokens,
                row,
                outputs,
                inputs,
                column,
                0,
                STEPS,
                step_inputs,
            )
            variant = next_variant(chosen, variant, VARIANTS)
    result = tl.sum(first_total, axis=0) * norm_factor(first_squares, inputs, first_eps)
    result += tl.sum(second_total, axis=0) * norm_factor(second_squares, inputs, second_eps)
    real = (token < tokens)[:, None] & (row < outputs)[None, :]
    tl.store(out + token[:, None] * outputs + row[None, :], result.to(out.dtype.element_ty), mask=real)


def project_pair(
    first: Tensor,
    second: Tensor,
    norms: tuple[Tensor, Tensor],
    epsilons: tuple[float, float],
    weight: Tensor,
    choice: Tensor | None = None,
    tiles: Tiling | None = None,
) -> Tensor:
    """concatenation(norm(first), norm(second)) @ weight.T.

    Args:
        first, second: [..., inputs] each, of `MOST_TOKENS` tokens at most.
        norms, epsilons: of the two root-mean-square norms; their weights [inputs].
        weight: variants [variants, outputs, 2 * inputs], contiguous.
        choice: the variant of each row of the states, see `project`.
        tiles: other than `tiling` gives.

    Returns:
        [..., outputs].
    """
    first, second = first.contiguous(), second.contiguous()
    outputs, inputs = weight.shape[1], first.shape[-1]
    tokens = first.numel() // inputs
    tiles = tiles or tiling(
        outputs,
        inputs,
        tokens=tokens,
        itemsize=first.element_size(),
        shared=step_bytes(first),
        weights=2,
        states=2,
    )
    out = torch.empty(*first.shape[:-1], outputs, dtype=first.dtype, device=first.device)
    _project_pair_kernel[(triton.cdiv(outputs, tiles.rows),)](
        first,
        second,
        *norms,
        weight,
        first if choice is None else choice,
        out,
        tokens,
        1 if choice is None else tokens // len(choice),
        outputs,
        inputs,
        *epsilons,
        CHOICES=0 if choice is None else min(len(choice), 2),
        VARIANTS=weight.shape[0],
        TOKENS=triton.next_power_of_2(tokens),
        ROWS=tiles.rows,
        PARTS=tiles.parts,
        PART=tiles.part,
        num_warps=tiles.parts,
        HELD=tiles.held,
        STEPS=tiles.steps,
        num_stages=tiles.steps_ahead + 1,
        **overlap(first),
    )
    return out
