"""Residual add and root-mean-square norm in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evospec.kernels.overlap import await_inputs, overlap


@triton.jit
def _add_norm_kernel(
    hidden,
    delta,
    weight,
    sums,
    normed,
    columns,
    eps,
    HAS_DELTA: tl.constexpr,
    SCALES_WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    await_inputs(OVERLAPS)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    states = tl.load(hidden + row * columns + column, mask=inside, other=0.0)
    if HAS_DELTA:
        change = tl.load(delta + row * columns + column, mask=inside, other=0.0)
        # Rounded to the model's type, as the separate addition would be.
        states = (states.to(tl.float32) + change.to(tl.float32)).to(states.dtype)
        tl.store(sums + row * columns + column, states, mask=inside)
    wide = states.to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide) / columns + eps)
    scale = tl.load(weight + column, mask=inside, other=0.0)
    if SCALES_WIDE:
        scaled = wide * scale.to(tl.float32)
    else:
        scaled = wide.to(states.dtype).to(tl.float32) * scale.to(tl.float32)
    tl.store(normed + row * columns + column, scaled.to(states.dtype), mask=inside)


def add_norm(
    hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float, *, scales_wide: bool
) -> tuple[Tensor, Tensor]:
    """hidden + delta, and its norm; both [..., columns], contiguous.

    Args:
        scales_wide: multiply by the weight before rounding to the model's type (Gemma), not after.
    """
    columns = hidden.shape[-1]
    normed = torch.empty_like(hidden)
    sums = hidden if delta is None else torch.empty_like(hidden)
    _add_norm_kernel[(hidden.numel() // columns,)](
        hidden,
        hidden if delta is None else delta,
        weight,
        sums,
        normed,
        columns,
        eps,
        HAS_DELTA=delta is not None,
        SCALES_WIDE=scales_wide,
        BLOCK=triton.next_power_of_2(columns),
        num_warps=4,
        **overlap(hidden),
    )
    return sums, normed
