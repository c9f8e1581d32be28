"""Heads as attention needs them: normed where the family does so, and rotated."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _normed(state, factor, scale, WIDE: tl.constexpr):
    wide = state.to(tl.float32) * factor
    if not WIDE:
        wide = wide.to(state.dtype).to(tl.float32)
    return (wide * scale.to(tl.float32)[None, :]).to(state.dtype)


@triton.jit
def rotated(
    source,
    real,
    position,
    table,
    table_positions,
    norm,
    eps,
    HEAD_DIM: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Heads at the pointers `source` [N], normed and rotated [N, HEAD_DIM]."""
    column = tl.arange(0, HEAD_DIM)
    opposite = (column + HEAD_DIM // 2) % HEAD_DIM
    inside = real[:, None]
    state = tl.load(source[:, None] + column[None, :], mask=inside, other=0.0)
    other = tl.load(source[:, None] + opposite[None, :], mask=inside, other=0.0)
    if HAS_NORMS:
        wide = state.to(tl.float32)
        factor = tl.rsqrt(tl.sum(wide * wide, axis=1) / HEAD_DIM + eps)[:, None]
        state = _normed(state, factor, tl.load(norm + column), WIDE)
        other = _normed(other, factor, tl.load(norm + opposite), WIDE)
    cosines = table + position[:, None] * HEAD_DIM + column[None, :]
    cos = tl.load(cosines, mask=inside, other=0.0).to(tl.float32)
    signed_sin = tl.load(cosines + table_positions.to(tl.int64) * HEAD_DIM, mask=inside, other=0.0)
    # Products rounded to the model's type before the sum, as separate operations would be.
    turned = (state.to(tl.float32) * cos).to(state.dtype).to(tl.float32)
    turned += (other.to(tl.float32) * signed_sin.to(tl.float32)).to(state.dtype).to(tl.float32)
    return turned.to(state.dtype)
