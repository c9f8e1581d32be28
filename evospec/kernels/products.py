"""What kernels of matrix products are made of.

A weight may have variants, of which each row of tokens has chosen one. A program goes through those that
were chosen, one after the other, with the tokens of others masked to zero: it costs as much as so many
weights, and a token's sums are those of its variant alone.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile(pointer, row, rows, stride, at, columns):
    """[PARTS, ROWS, PART] of a row-major matrix, from `at` [PARTS, 1, PART]."""
    cells = pointer + row[None, :, None].to(tl.int64) * stride + at
    return tl.load(cells, mask=(row < rows)[None, :, None] & (at < columns), other=0.0)


@triton.jit
def held_tiles(pointer, row, rows, stride, column, columns, HELD: tl.constexpr, STEP: tl.constexpr):
    """The first `HELD` steps' tiles, in registers."""
    held = ()
    for step in tl.static_range(HELD):
        held = held + (tile(pointer, row, rows, stride, step * STEP + column, columns),)  # type: ignore[assignment] # noqa: RUF005
    return held


@triton.jit
def scaled(state, norm, at, columns):
    """A norm's product with its weight, ahead of its factor."""
    scale = tl.load(norm + at, mask=at < columns, other=0.0).to(tl.float32)
    return (state.to(tl.float32) * scale).to(state.dtype)


@triton.jit
def norm_factor(squares, columns, eps):
    """What a root-mean-square norm multiplies each token by [TOKENS, 1]."""
    return tl.rsqrt(tl.sum(tl.sum(squares, axis=2), axis=0) / columns + eps)[:, None]


@triton.jit
def multiplied(states, weights, total):
    """total + [PARTS, TOKENS, PART] times [PARTS, ROWS, PART], each warp its part: [PARTS, TOKENS, ROWS]."""
    return tl.dot(states, tl.permute(weights, (0, 2, 1)), total, input_precision="tf32x3")


@triton.jit
def choices(choice, token, tokens, per_row):
    """The variant that each token goes through [TOKENS]; -1 where there is none."""
    return tl.load(choice + token // per_row, mask=token < tokens, other=-1).to(tl.int32)


@triton.jit
def next_variant(chosen, variant, variants):
    """The lowest one above `variant` that any token goes through; `variants` when there is none."""
    return tl.min(tl.where(chosen > variant, chosen, variants), axis=0)


@triton.jit
def choosers(chosen, variant, token, tokens):
    """The tokens of one variant; all others as if they were not there [TOKENS]."""
    return tl.where(chosen == variant, token, tokens)


@triton.jit
def variant_of(weight, variant, outputs, inputs):
    """Where a variant [outputs, inputs] begins."""
    return weight + variant.to(tl.int64) * outputs * inputs
